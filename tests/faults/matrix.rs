//! The rows of the fault matrix: number, tier, title and function of each fault.

use crate::{
    Run, agents_and_slack, clock, cluster, crash, link_codes, links, operator_changes, panics,
    rejected_requests, resource_exhaustion, stream,
};
use std::pin::Pin;
use tests::checker::Verdict;

/// Tier of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Runs for every change.
    EveryChange,
    /// Runs with `--nightly`.
    Nightly,
}

impl Tier {
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::EveryChange => "always",
            Tier::Nightly => "nightly",
        }
    }
}

/// Outcome of a fault.
pub enum Outcome {
    /// Every guarantee held.
    Held(Box<Verdict>, Vec<String>),
    /// A guarantee did not hold.
    Broken(String),
    /// This machine can't run the fault, for this reason.
    Skipped(String),
}

type Running = Pin<Box<dyn Future<Output = anyhow::Result<Outcome>>>>;

/// A row of the matrix: a fault.
pub struct Row {
    pub number: &'static str,
    pub what: &'static str,
    pub tier: Tier,
    pub run: fn(Run) -> Running,
}

macro_rules! rows {
    ($($number:literal $tier:ident $what:literal => $run:expr;)*) => {
        /// All faults in order.
        pub const ROWS: &[Row] = &[$(Row {
            number: $number,
            what: $what,
            tier: Tier::$tier,
            run: |run| Box::pin($run(run)),
        }),*];
    };
}

rows! {
    "0" EveryChange "no fault, for comparison" => crash::no_fault;
    "1" EveryChange "an ingest is killed" => crash::ingest_killed;
    "2" EveryChange "a worker is killed during attempts" => crash::worker_killed;
    "3" EveryChange "NATS is killed and down for 3 s" => crash::nats_killed;
    "4" EveryChange "Postgres is killed while link codes are used" => crash::postgres_killed_mid_claim;
    "5" EveryChange "ingests and workers are restarted one by one" => crash::rolling_restart;
    "6" Nightly "each of three nats-servers enters lame duck mode" => cluster::lame_ducks;
    "7" Nightly "the stream leader of three nats-servers is killed" => cluster::leader_killed;
    "7b" Nightly "one of three nats-servers hangs" => cluster::one_frozen;
    "8" EveryChange "Postgres hangs for 10 s, then is down for 5 s" => crash::postgres_away;
    "8n" Nightly "Postgres is down for 60 s" => crash::postgres_away_long;
    "9" EveryChange "NATS is down for 10 s" => crash::nats_away;
    "10a" EveryChange "half-open link: ingest and NATS" => links::ingest_nats;
    "10b" EveryChange "half-open link: worker and NATS" => links::worker_nats;
    "10c" EveryChange "half-open link: worker and Postgres" => links::worker_postgres;
    "10d" EveryChange "link held in one direction: worker and Postgres" => links::one_way;
    "10e" EveryChange "half-open link for 25 s: worker and NATS" => links::worker_nats_long;
    "10f" EveryChange "Postgres is replaced at its address, old links hang" => links::postgres_replaced;
    "10n" Nightly "a worker's network link is down (network namespace)" => links::cable;
    "11" Nightly "NATS has a full disk" => resource_exhaustion::disk_full;
    "12" EveryChange "Postgres is slow: 500 ms per query, then 5 s" => links::slow_postgres;
    "13" EveryChange "an agent is slow in two conversations" => agents_and_slack::slow_agent;
    "14" EveryChange "one message always fails, another three times" => agents_and_slack::poison;
    "15" EveryChange "Slack: 429, 5xx, no answer, cut answers, ok:false" => agents_and_slack::slack_errors;
    "16" Nightly "an ingest's clock is ten minutes off" => clock::skewed;
    "17" EveryChange "every webhook is sent five times at once, and again later" => agents_and_slack::duplicates;
    "18" EveryChange "2,000 people race for 200 codes" => link_codes::race;
    "19" EveryChange "a tenant sends a hundred times as much" => agents_and_slack::noisy_tenant;
    "20" EveryChange "too large, malformed and ambiguous bodies" => rejected_requests::bodies;
    "21" EveryChange "forged, foreign and replayed signatures" => rejected_requests::forgeries;
    "22" EveryChange "slow headers, slow bodies, silent sockets" => resource_exhaustion::slow_sockets;
    "23" Nightly "5,000 idle connections" => resource_exhaustion::flood;
    "24" EveryChange "a signing secret is rotated" => operator_changes::secret_rotated;
    "25" EveryChange "a change without a notification to workers" => operator_changes::unannounced_change;
    "26" Nightly "a worker runs out of memory" => crash::worker_out_of_memory;
    "27" EveryChange "the stream is deleted and recreated" => stream::deleted;
    "28" Nightly "the schema is one version ahead" => crash::schema_ahead;
    "29" EveryChange "a worker is frozen past its lease, and continues" => crash::worker_frozen;
    "29n" Nightly "a worker is frozen for 60 s, and continues" => crash::worker_frozen_long;
    "31" EveryChange "the stream is truncated and filled past the cursors" => stream::truncated;
    "31b" EveryChange "the stream is truncated beside running workers" => stream::truncated_beside_workers;
    "32" EveryChange "committed webhooks are purged, also of idle partitions" => stream::purged;
    "33" EveryChange "a tenant that posted last in its partitions is deleted" => stream::tenant_deleted;
    "34" EveryChange "Postgres's responses to commits are lost" => links::answers_lost;
    "35" EveryChange "a worker loses Postgres while it calls agents" => links::cut_off_in_mid_call;
    "36" Nightly "workers' clocks are an hour ahead and behind" => clock::workers_skewed;
    "37" EveryChange "Postgres is restored from an earlier state" => crash::postgres_restored;
    "38" EveryChange "panics in every stage of the workers" => panics::in_every_stage;
    "30" Nightly "random faults" => crash::at_random;
}
