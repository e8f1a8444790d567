//! `response_url`s, which can be used five times within thirty minutes.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

const LIFE: Duration = Duration::from_secs(30 * 60);
const USES: u32 = 5;

/// All `response_url`s.
#[derive(Debug, Default)]
pub(super) struct ResponseUrls(HashMap<String, (SystemTime, u32)>);

impl ResponseUrls {
    pub(super) fn give(&mut self, path: &str, now: SystemTime) {
        self.0.insert(path.to_owned(), (now, 0));
    }

    pub(super) fn take(&mut self, path: &str, now: SystemTime) -> Result<(), &'static str> {
        let (given, used) = self.0.get_mut(path).ok_or("no_such_url")?;
        if *given + LIFE <= now {
            return Err("expired_url");
        }
        if *used == USES {
            return Err("used_url");
        }
        *used += 1;
        Ok(())
    }
}
