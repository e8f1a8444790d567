//! AttemptCapacity for attempts in a worker: pure arithmetic.

use std::collections::HashMap;

/// Attempts that run at once in a worker, at most.
pub const ATTEMPTS_MAX: usize = 256;
/// Of these, capacity that only interactive deliveries get.
pub const INTERACTIVE_RESERVE: usize = ATTEMPTS_MAX / 4;
/// AttemptCapacity that one organization's agents get at most.
const ORGANIZATION_MAX: usize = ATTEMPTS_MAX / 2;

/// What runs.
#[derive(Debug, Default)]
pub struct AttemptCapacity {
    taken: usize,
    by_organization: HashMap<String, usize>,
}

impl AttemptCapacity {
    /// AttemptCapacity that interactive deliveries may get now.
    pub fn free_for_interactive(&self) -> usize {
        ATTEMPTS_MAX - self.taken
    }

    /// AttemptCapacity that other deliveries may get now.
    pub fn free_for_background(&self) -> usize {
        (ATTEMPTS_MAX - INTERACTIVE_RESERVE).saturating_sub(self.taken)
    }

    /// Takes a place; false when the organization has as many as one may have.
    #[must_use]
    pub fn take(&mut self, organization: &str) -> bool {
        let of_organization = self.by_organization.entry(organization.to_owned()).or_default();
        if *of_organization >= ORGANIZATION_MAX || self.taken >= ATTEMPTS_MAX {
            return false;
        }
        *of_organization += 1;
        self.taken += 1;
        true
    }

    /// Gives a place back.
    pub fn free(&mut self, organization: &str) {
        self.taken = self.taken.saturating_sub(1);
        if let Some(of_organization) = self.by_organization.get_mut(organization) {
            *of_organization -= 1;
            if *of_organization == 0 {
                self.by_organization.remove(organization);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_per_organization() {
        bolero::check!().with_type::<Vec<(bool, u8)>>().for_each(|steps| {
            let (mut capacity, mut held) = (AttemptCapacity::default(), Vec::new());
            for (takes, organization) in steps.iter().cycle().take(600) {
                let organization = (organization % 4).to_string();
                if *takes && capacity.take(&organization) {
                    held.push(organization);
                } else if let Some(organization) = held.pop() {
                    capacity.free(&organization);
                }
                assert_eq!(capacity.taken, held.len());
                assert!(capacity.taken <= ATTEMPTS_MAX);
                for organization in 0..4 {
                    let name = organization.to_string();
                    let count = held.iter().filter(|held| **held == name).count();
                    assert!(count <= ORGANIZATION_MAX);
                }
                assert!(capacity.free_for_background() <= ATTEMPTS_MAX - INTERACTIVE_RESERVE);
            }
        });
    }
}
