//! `tidegate lanes`: lanes that are set aside, and why.

use crate::{StoreSettings, print};

const COLUMNS: [print::Column; 8] = [
    ("lane", false),
    ("partition", true),
    ("connection", false),
    ("depth", true),
    ("parked since", false),
    ("attempts", true),
    ("next try", false),
    ("last error", false),
];

/// Settings of `tidegate lanes`.
#[derive(Debug, clap::Args)]
pub struct Lanes {
    #[command(flatten)]
    store: StoreSettings,
    /// How many at most.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

impl Lanes {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let lanes = self.store.open()?.lane_states(i64::from(self.limit)).await?;
        if self.json {
            return lanes.iter().try_for_each(print::json);
        }
        let rows: Vec<_> = lanes
            .iter()
            .map(|lane| {
                vec![
                    lane.lane.clone(),
                    lane.partition.to_string(),
                    print::or_dash(lane.connection.as_deref()),
                    lane.depth.to_string(),
                    print::or_dash(lane.parked_at.as_deref()),
                    lane.attempts.to_string(),
                    print::or_dash(lane.next_at.as_deref()),
                    print::or_dash(Some(&lane.last_error)),
                ]
            })
            .collect();
        Ok(print::table(&COLUMNS, &rows)?)
    }
}
