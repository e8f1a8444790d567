//! Capacity of a worker for attempts: pure arithmetic.
//!
//! One organization gets at most half of a worker's attempts. The last quarter of each priority is
//! reserved for idle organizations, those without a running attempt: one attempt each. So a few
//! organizations with slow agents cannot use all attempts and delay the others. The same shares
//! limit the bytes of payloads.

use shared::store::Priority;
use std::collections::HashMap;

/// Maximum number of concurrent attempts of a worker.
pub const ATTEMPTS_MAX: usize = 256;
/// Attempts reserved for interactive deliveries.
pub const INTERACTIVE_RESERVE: usize = ATTEMPTS_MAX / 4;
/// Maximum number of concurrent attempts of one organization.
const ORGANIZATION_MAX: usize = ATTEMPTS_MAX / 2;
/// Attempts for background deliveries that are reserved for idle organizations.
const BACKGROUND_IDLE_RESERVE: usize = (ATTEMPTS_MAX - INTERACTIVE_RESERVE) / 4;
/// Attempts for interactive deliveries that are reserved for idle organizations.
const INTERACTIVE_IDLE_RESERVE: usize = INTERACTIVE_RESERVE / 4;

/// Maximum bytes of the payloads of running attempts.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// Maximum bytes of the payloads of one organization's running attempts.
const ORGANIZATION_BYTES_MAX: usize = PAYLOAD_BYTES_MAX / 2;
/// Payload bytes reserved for idle organizations.
const IDLE_RESERVE_BYTES: usize = PAYLOAD_BYTES_MAX / 4;
/// Free bytes required for a claim: two copies of the largest payload.
const CLAIM_BYTES: usize = 3 << 20;

/// Usage of a worker's capacity, in total and per organization.
#[derive(Debug, Default)]
pub struct AttemptCapacity {
    all: Usage,
    by_organization: HashMap<String, Usage>,
}

/// Number of running attempts, and bytes of their payloads.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Usage {
    attempts: usize,
    bytes: usize,
}

/// Maximum number of deliveries in one claim.
#[derive(Debug, PartialEq, Eq)]
pub struct ClaimLimits {
    /// Limit for all organizations together.
    pub total: usize,
    /// Limit for each organization with running attempts.
    pub by_organization: Vec<(String, usize)>,
    /// Limit for each idle organization.
    pub idle_organization: usize,
}

impl AttemptCapacity {
    /// Returns the limits of the next claim of a priority.
    pub fn claim_limits(&self, priority: Priority) -> ClaimLimits {
        let (places, reserve) = match priority {
            Priority::Interactive => (ATTEMPTS_MAX, INTERACTIVE_IDLE_RESERVE),
            Priority::Background => (ATTEMPTS_MAX - INTERACTIVE_RESERVE, BACKGROUND_IDLE_RESERVE),
        };
        let has_bytes = self.all.bytes + CLAIM_BYTES <= PAYLOAD_BYTES_MAX;
        let free = if has_bytes { places.saturating_sub(self.all.attempts) } else { 0 };
        let open_to_all = free.saturating_sub(reserve);
        let is_open = open_to_all > 0 && self.has_room_for_all(CLAIM_BYTES);
        let room = |of: Usage| match is_open && of.bytes + CLAIM_BYTES <= ORGANIZATION_BYTES_MAX {
            true => ORGANIZATION_MAX.saturating_sub(of.attempts).min(open_to_all),
            false => 0,
        };
        let by_organization =
            self.by_organization.iter().map(|(name, of)| (name.clone(), room(*of)));
        ClaimLimits {
            total: if is_open { open_to_all } else { free },
            by_organization: by_organization.collect(),
            idle_organization: if is_open { room(Usage::default()) } else { free.min(1) },
        }
    }

    /// Returns whether `bytes` fit beside the reserve for idle organizations.
    fn has_room_for_all(&self, bytes: usize) -> bool {
        self.all.bytes + bytes <= PAYLOAD_BYTES_MAX - IDLE_RESERVE_BYTES
    }

    /// Adds an attempt. Returns false if it would exceed a limit of the organization or the worker.
    #[must_use]
    pub fn try_acquire(&mut self, organization: &str, bytes: usize) -> bool {
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
            *of = Usage { attempts: of.attempts + 1, bytes: of.bytes + bytes };
        }
        true
    }

    /// Removes an attempt that [`AttemptCapacity::try_acquire`] added.
    pub fn release(&mut self, organization: &str, bytes: usize) {
        let Some(of) = self.by_organization.get_mut(organization) else { return };
        for of in [of, &mut self.all] {
            *of = Usage { attempts: of.attempts - 1, bytes: of.bytes - bytes };
        }
        if self.by_organization[organization].attempts == 0 {
            self.by_organization.remove(organization);
        }
    }

    /// Returns the bytes of the payloads of running attempts.
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
                if *takes && capacity.try_acquire(&organization, 1) {
                    held.push(organization);
                } else if let Some(organization) = held.pop() {
                    capacity.release(&organization, 1);
                }
                assert_eq!(capacity.all, Usage { attempts: held.len(), bytes: held.len() });
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

    /// Claims like the SQL statement: as many as each organization wants, within the limits.
    fn claim(capacity: &mut AttemptCapacity, priority: Priority, wants: &[(String, usize)]) {
        let limits = capacity.claim_limits(priority);
        let mut left = limits.total;
        for (name, wanted) in wants {
            let known = limits.by_organization.iter().find(|(known, _)| known == name);
            let room = known.map_or(limits.idle_organization, |(_, room)| *room);
            for _ in 0..room.min(*wanted).min(left) {
                assert!(capacity.try_acquire(name, 0), "a claim within the limits was refused");
                left -= 1;
            }
        }
    }

    fn organizations(count: usize, wanted: usize) -> Vec<(String, usize)> {
        (0..count).map(|n| (format!("org{n}"), wanted)).collect()
    }

    #[test]
    fn reserves_for_idle_organizations() {
        for (slow, wanted) in [(2, 192), (12, 16), (16, 16), (40, 8)] {
            let mut capacity = AttemptCapacity::default();
            let wants = organizations(slow, wanted);
            for _ in 0..50 {
                claim(&mut capacity, Priority::Background, &wants);
            }
            assert!(capacity.all.attempts >= 144, "{slow}: only {} run", capacity.all.attempts);
            let limits = capacity.claim_limits(Priority::Background);
            assert_eq!(limits.idle_organization, 1, "{slow} organizations use all attempts");
            assert!(limits.by_organization.iter().all(|(_, room)| *room == 0));
        }
    }

    #[test]
    fn uses_full_capacity() {
        let mut capacity = AttemptCapacity::default();
        for _ in 0..50 {
            claim(&mut capacity, Priority::Background, &organizations(200, 1));
        }
        assert_eq!(capacity.all.attempts, ATTEMPTS_MAX - INTERACTIVE_RESERVE);
        assert_eq!(capacity.claim_limits(Priority::Background).total, 0);
        assert!(capacity.claim_limits(Priority::Interactive).total > 0);
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
                    capacity.release(&name, 0);
                }
            }
        });
    }

    /// Large payloads of one organization leave bytes for others, and end its claims before
    /// `try_acquire` fails.
    #[test]
    fn shares_payload_bytes() {
        const LARGE: usize = 2 << 20;
        let mut capacity = AttemptCapacity::default();
        while capacity.try_acquire("large", LARGE) {}
        assert_eq!(capacity.bytes(), ORGANIZATION_BYTES_MAX);
        let limits = capacity.claim_limits(Priority::Interactive);
        assert_eq!(limits.by_organization, [("large".to_owned(), 0)]);
        assert!(limits.idle_organization > 1);
        while capacity.try_acquire("second", LARGE) {}
        assert!(capacity.bytes() <= PAYLOAD_BYTES_MAX - IDLE_RESERVE_BYTES);
        assert_eq!(capacity.claim_limits(Priority::Interactive).idle_organization, 1);
        assert!(capacity.try_acquire("third", LARGE) && !capacity.try_acquire("third", LARGE));
        for n in 0.. {
            if !capacity.try_acquire(&n.to_string(), LARGE) {
                break;
            }
        }
        assert_eq!(capacity.bytes(), PAYLOAD_BYTES_MAX);
        assert_eq!(capacity.claim_limits(Priority::Interactive).total, 0);
        capacity.release("large", LARGE);
        assert_eq!(capacity.bytes(), PAYLOAD_BYTES_MAX - LARGE);
    }
}
