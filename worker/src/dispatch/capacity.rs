//! Capacity of a worker for attempts: pure arithmetic.
//!
//! Places are shared by all organizations. One organization gets at most half of them. The last
//! quarter of the places of each priority is a reserve: only organizations without a running
//! attempt get a place of it, one each. So a few organizations with slow agents never hold all
//! places, and others are answered at once. The bytes of payloads have the same shares.

use shared::store::Priority;
use std::collections::HashMap;

/// Maximum number of attempts that run in a worker.
pub const ATTEMPTS_MAX: usize = 256;
/// Part of the capacity that is reserved for interactive deliveries.
pub const INTERACTIVE_RESERVE: usize = ATTEMPTS_MAX / 4;
/// Maximum number of attempts of one organization's agents.
const ORGANIZATION_MAX: usize = ATTEMPTS_MAX / 2;
/// Part of the capacity for background deliveries that is for organizations without an attempt.
const BACKGROUND_NEWCOMERS: usize = (ATTEMPTS_MAX - INTERACTIVE_RESERVE) / 4;
/// Part of the reserve of interactive deliveries that is for organizations without an attempt.
const INTERACTIVE_NEWCOMERS: usize = INTERACTIVE_RESERVE / 4;

/// Maximum bytes of the running attempts' payloads.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// Maximum bytes of the payloads of one organization's attempts.
const ORGANIZATION_BYTES_MAX: usize = PAYLOAD_BYTES_MAX / 2;
/// Bytes that only organizations without a running attempt get.
const NEWCOMER_BYTES: usize = PAYLOAD_BYTES_MAX / 4;
/// Free bytes below which nothing is claimed: two copies of the largest payload.
const CLAIM_BYTES: usize = 3 << 20;

/// Running attempts, in total and per organization.
#[derive(Debug, Default)]
pub struct AttemptCapacity {
    all: Use,
    by_organization: HashMap<String, Use>,
}

/// Number of attempts, and bytes of their payloads.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Use {
    attempts: usize,
    bytes: usize,
}

/// Attempts that a claim may start.
#[derive(Debug, PartialEq, Eq)]
pub struct Vacancies {
    /// Maximum of all organizations together.
    pub total: usize,
    /// Maximum of each organization with running attempts.
    pub by_organization: Vec<(String, usize)>,
    /// Maximum of each other organization.
    pub newcomer: usize,
}

impl AttemptCapacity {
    /// Returns the attempts of a priority that may start.
    pub fn vacancies(&self, priority: Priority) -> Vacancies {
        let (places, reserve) = match priority {
            Priority::Interactive => (ATTEMPTS_MAX, INTERACTIVE_NEWCOMERS),
            Priority::Background => (ATTEMPTS_MAX - INTERACTIVE_RESERVE, BACKGROUND_NEWCOMERS),
        };
        let has_bytes = self.all.bytes + CLAIM_BYTES <= PAYLOAD_BYTES_MAX;
        let free = if has_bytes { places.saturating_sub(self.all.attempts) } else { 0 };
        let open_to_all = free.saturating_sub(reserve);
        let is_open = open_to_all > 0 && self.has_room_for_all(CLAIM_BYTES);
        let room = |of: Use| match is_open && of.bytes + CLAIM_BYTES <= ORGANIZATION_BYTES_MAX {
            true => ORGANIZATION_MAX.saturating_sub(of.attempts).min(open_to_all),
            false => 0,
        };
        let by_organization =
            self.by_organization.iter().map(|(name, of)| (name.clone(), room(*of)));
        Vacancies {
            total: if is_open { open_to_all } else { free },
            by_organization: by_organization.collect(),
            newcomer: if is_open { room(Use::default()) } else { free.min(1) },
        }
    }

    /// Returns whether bytes fit without the reserve.
    fn has_room_for_all(&self, bytes: usize) -> bool {
        self.all.bytes + bytes <= PAYLOAD_BYTES_MAX - NEWCOMER_BYTES
    }

    /// Adds an attempt. Returns false if the organization or the worker is at its limit.
    #[must_use]
    pub fn take(&mut self, organization: &str, bytes: usize) -> bool {
        let of = self.by_organization.get(organization).copied().unwrap_or_default();
        let is_full = of.attempts >= ORGANIZATION_MAX
            || self.all.attempts >= ATTEMPTS_MAX
            || of.bytes + bytes > ORGANIZATION_BYTES_MAX
            || self.all.bytes + bytes > PAYLOAD_BYTES_MAX
            || of.attempts > 0 && !self.has_room_for_all(bytes);
        if is_full {
            return false;
        }
        let of = self.by_organization.entry(organization.to_owned()).or_default();
        for of in [of, &mut self.all] {
            *of = Use { attempts: of.attempts + 1, bytes: of.bytes + bytes };
        }
        true
    }

    /// Removes an attempt that was added.
    pub fn free(&mut self, organization: &str, bytes: usize) {
        let Some(of) = self.by_organization.get_mut(organization) else { return };
        for of in [of, &mut self.all] {
            *of = Use { attempts: of.attempts - 1, bytes: of.bytes - bytes };
        }
        if self.by_organization[organization].attempts == 0 {
            self.by_organization.remove(organization);
        }
    }

    /// Returns the bytes of the running attempts' payloads.
    pub fn bytes(&self) -> usize {
        self.all.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_attempts_per_organization() {
        bolero::check!().with_iterations(100).with_type::<Vec<(bool, u8)>>().for_each(|steps| {
            let (mut capacity, mut held) = (AttemptCapacity::default(), Vec::new());
            for (takes, organization) in steps.iter().cycle().take(600) {
                let organization = (organization % 4).to_string();
                if *takes && capacity.take(&organization, 1) {
                    held.push(organization);
                } else if let Some(organization) = held.pop() {
                    capacity.free(&organization, 1);
                }
                assert_eq!(capacity.all, Use { attempts: held.len(), bytes: held.len() });
                assert!(capacity.all.attempts <= ATTEMPTS_MAX);
                for organization in 0..4 {
                    let name = organization.to_string();
                    let count = held.iter().filter(|held| **held == name).count();
                    assert!(count <= ORGANIZATION_MAX);
                    assert_eq!(count > 0, capacity.by_organization.contains_key(&name));
                }
            }
        });
    }

    /// Claims as the statement does: as many as the organization wants within the vacancies.
    fn claim(capacity: &mut AttemptCapacity, priority: Priority, wants: &[(String, usize)]) {
        let vacancies = capacity.vacancies(priority);
        let mut left = vacancies.total;
        for (name, wanted) in wants {
            let known = vacancies.by_organization.iter().find(|(known, _)| known == name);
            let room = known.map_or(vacancies.newcomer, |(_, room)| *room);
            for _ in 0..room.min(*wanted).min(left) {
                assert!(capacity.take(name, 0), "a claim within the vacancies was refused");
                left -= 1;
            }
        }
    }

    fn organizations(count: usize, wanted: usize) -> Vec<(String, usize)> {
        (0..count).map(|n| (format!("org{n}"), wanted)).collect()
    }

    #[test]
    fn keeps_places_for_newcomers() {
        for (slow, wanted) in [(2, 192), (12, 16), (16, 16), (40, 8)] {
            let mut capacity = AttemptCapacity::default();
            let wants = organizations(slow, wanted);
            for _ in 0..50 {
                claim(&mut capacity, Priority::Background, &wants);
            }
            assert!(capacity.all.attempts >= 144, "{slow}: only {} run", capacity.all.attempts);
            let vacancies = capacity.vacancies(Priority::Background);
            assert_eq!(vacancies.newcomer, 1, "{slow} organizations hold all places");
            assert!(vacancies.by_organization.iter().all(|(_, room)| *room == 0));
        }
    }

    #[test]
    fn uses_all_places() {
        let mut capacity = AttemptCapacity::default();
        for _ in 0..50 {
            claim(&mut capacity, Priority::Background, &organizations(200, 1));
        }
        assert_eq!(capacity.all.attempts, ATTEMPTS_MAX - INTERACTIVE_RESERVE);
        assert_eq!(capacity.vacancies(Priority::Background).total, 0);
        assert!(capacity.vacancies(Priority::Interactive).total > 0);
    }

    #[test]
    fn never_claims_beyond_limits() {
        type Step = (bool, u8, u8, bool);
        bolero::check!().with_iterations(500).with_type::<Vec<Step>>().for_each(|steps| {
            let (mut capacity, mut held) = (AttemptCapacity::default(), Vec::<String>::new());
            for (interactive, organization, wanted, ends) in steps.iter().cycle().take(200) {
                let name = (organization % 32).to_string();
                let priority =
                    if *interactive { Priority::Interactive } else { Priority::Background };
                let before = capacity.all.attempts;
                let is_new = !capacity.by_organization.contains_key(&name);
                let places = if *interactive { ATTEMPTS_MAX } else { 192 };
                claim(&mut capacity, priority, &[(name.clone(), usize::from(*wanted))]);
                let taken = capacity.all.attempts - before;
                held.extend(std::iter::repeat_n(name, taken));
                assert!(
                    capacity.all.attempts <= ATTEMPTS_MAX
                        && (taken == 0 || capacity.all.attempts <= places)
                );
                assert!(taken > 0 || !is_new || *wanted == 0 || before >= places);
                if *ends && let Some(name) = held.pop() {
                    capacity.free(&name, 0);
                }
            }
        });
    }

    /// One organization's large payloads leave room for others, and stop claims before they are
    /// refused.
    #[test]
    fn shares_bytes() {
        const LARGE: usize = 2 << 20;
        let mut capacity = AttemptCapacity::default();
        while capacity.take("large", LARGE) {}
        assert_eq!(capacity.bytes(), ORGANIZATION_BYTES_MAX);
        let vacancies = capacity.vacancies(Priority::Interactive);
        assert_eq!(vacancies.by_organization, [("large".to_owned(), 0)]);
        assert!(vacancies.newcomer > 1);
        while capacity.take("second", LARGE) {}
        assert!(capacity.bytes() <= PAYLOAD_BYTES_MAX - NEWCOMER_BYTES);
        assert_eq!(capacity.vacancies(Priority::Interactive).newcomer, 1);
        assert!(capacity.take("third", LARGE) && !capacity.take("third", LARGE));
        for n in 0.. {
            if !capacity.take(&n.to_string(), LARGE) {
                break;
            }
        }
        assert_eq!(capacity.bytes(), PAYLOAD_BYTES_MAX);
        assert_eq!(capacity.vacancies(Priority::Interactive).total, 0);
        capacity.free("large", LARGE);
        assert_eq!(capacity.bytes(), PAYLOAD_BYTES_MAX - LARGE);
    }
}
