//! Hourly bar charts, as SVG shapes. An hour without a value is a gap.

use time::{Duration, OffsetDateTime};

/// Hours of a chart.
pub const HOURS: i64 = 24;
/// Height of the largest bar.
const HEIGHT: i64 = 60;
/// Width of an hour, with the space after its bar.
const STEP: i64 = 20;

/// Bar of an hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bar {
    pub x: i64,
    pub y: i64,
    pub height: i64,
    /// Hour and value.
    pub label: String,
}

/// Chart of a day.
#[derive(Debug, PartialEq, Eq)]
pub struct Chart {
    pub title: &'static str,
    pub bars: Vec<Bar>,
    /// Largest value.
    pub most: i64,
}

impl Chart {
    /// Creates a chart of the [`HOURS`] up to `now` from hourly values.
    pub fn new(title: &'static str, now: OffsetDateTime, values: &[(OffsetDateTime, i64)]) -> Self {
        let first = start_of_hour(now) - Duration::hours(HOURS - 1);
        let most = values.iter().map(|(_, value)| *value).max().unwrap_or_default().max(1);
        let bar = |(hour, value): &(OffsetDateTime, i64)| {
            let n = (*hour - first).whole_hours();
            if !(0..HOURS).contains(&n) {
                return None;
            }
            // An hour with the value zero is a line, not a gap.
            let height = (value * HEIGHT / most).max(1);
            let label = format!("{:02}:00 UTC: {value}", hour.hour());
            Some(Bar { x: n * STEP, y: HEIGHT - height, height, label })
        };
        Self { title, bars: values.iter().filter_map(bar).collect(), most }
    }
}

fn start_of_hour(at: OffsetDateTime) -> OffsetDateTime {
    at - Duration::seconds(at.unix_timestamp().rem_euclid(3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_gaps_as_gaps() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(100) + Duration::minutes(30);
        let hour = |back: i64| OffsetDateTime::UNIX_EPOCH + Duration::hours(100 - back);
        let chart = Chart::new("Webhooks", now, &[(hour(24), 9), (hour(23), 30), (hour(0), 15)]);
        assert_eq!(chart.most, 30);
        let places: Vec<_> = chart.bars.iter().map(|bar| (bar.x, bar.y, bar.height)).collect();
        assert_eq!(places, [(0, 0, HEIGHT), (23 * STEP, 30, 30)]);
        assert_eq!(chart.bars[1].label, "04:00 UTC: 15");
        assert!(Chart::new("Webhooks", now, &[]).bars.is_empty());
        assert_eq!(Chart::new("Webhooks", now, &[(hour(1), 0)]).bars[0].height, 1);
    }
}
