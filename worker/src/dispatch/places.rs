//! Places for attempts in a worker: pure arithmetic.

use std::collections::HashMap;

/// Attempts that run at once in a worker, at most.
pub const PLACES: usize = 256;
/// Of these, places that only interactive deliveries get.
pub const INTERACTIVE_PLACES: usize = PLACES / 4;
/// Places that one organization's agents get at most.
const ORGANIZATION_MAX: usize = PLACES / 2;

/// What runs.
#[derive(Debug, Default)]
pub struct Places {
    taken: usize,
    by_organization: HashMap<String, usize>,
}

impl Places {
    /// Places that interactive deliveries may get now.
    pub fn for_interactive(&self) -> usize {
        PLACES - self.taken
    }

    /// Places that other deliveries may get now.
    pub fn for_background(&self) -> usize {
        (PLACES - INTERACTIVE_PLACES).saturating_sub(self.taken)
    }

    /// Takes a place; false when the organization has as many as one may have.
    #[must_use]
    pub fn take(&mut self, organization: &str) -> bool {
        let of_organization = self.by_organization.entry(organization.to_owned()).or_default();
        if *of_organization >= ORGANIZATION_MAX || self.taken >= PLACES {
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
            let (mut places, mut held) = (Places::default(), Vec::new());
            for (takes, organization) in steps.iter().cycle().take(600) {
                let organization = (organization % 4).to_string();
                if *takes && places.take(&organization) {
                    held.push(organization);
                } else if let Some(organization) = held.pop() {
                    places.free(&organization);
                }
                assert_eq!(places.taken, held.len());
                assert!(places.taken <= PLACES);
                for organization in 0..4 {
                    let name = organization.to_string();
                    let count = held.iter().filter(|held| **held == name).count();
                    assert!(count <= ORGANIZATION_MAX);
                }
                assert!(places.for_background() <= PLACES - INTERACTIVE_PLACES);
            }
        });
    }
}
