//! Capacity of a worker for attempts: pure arithmetic.

use std::collections::HashMap;

/// Maximum number of attempts that run in a worker.
pub const ATTEMPTS_MAX: usize = 256;
/// Part of the capacity that is reserved for interactive deliveries.
pub const INTERACTIVE_RESERVE: usize = ATTEMPTS_MAX / 4;
/// Maximum number of attempts of one organization's agents.
const ORGANIZATION_MAX: usize = ATTEMPTS_MAX / 2;

/// Running attempts, in total and per organization.
#[derive(Debug, Default)]
pub struct AttemptCapacity {
    running: usize,
    by_organization: HashMap<String, usize>,
}

impl AttemptCapacity {
    /// Returns the number of interactive deliveries that may start.
    pub fn free_for_interactive(&self) -> usize {
        ATTEMPTS_MAX - self.running
    }

    /// Returns the number of background deliveries that may start.
    pub fn free_for_background(&self) -> usize {
        (ATTEMPTS_MAX - INTERACTIVE_RESERVE).saturating_sub(self.running)
    }

    /// Adds an attempt. Returns false if the organization or the worker is at its limit.
    #[must_use]
    pub fn take(&mut self, organization: &str) -> bool {
        let of_organization = self.by_organization.entry(organization.to_owned()).or_default();
        if *of_organization >= ORGANIZATION_MAX || self.running >= ATTEMPTS_MAX {
            return false;
        }
        *of_organization += 1;
        self.running += 1;
        true
    }

    pub fn free(&mut self, organization: &str) {
        self.running = self.running.saturating_sub(1);
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
    fn bounds_attempts_in_total_and_per_organization() {
        bolero::check!().with_type::<Vec<(bool, u8)>>().for_each(|steps| {
            let (mut capacity, mut held) = (AttemptCapacity::default(), Vec::new());
            for (takes, organization) in steps.iter().cycle().take(600) {
                let organization = (organization % 4).to_string();
                if *takes && capacity.take(&organization) {
                    held.push(organization);
                } else if let Some(organization) = held.pop() {
                    capacity.free(&organization);
                }
                assert_eq!(capacity.running, held.len());
                assert!(capacity.running <= ATTEMPTS_MAX);
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
