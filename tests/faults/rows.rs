//! The matrix: every fault, when it is run, and what runs it.

use crate::{
    Run, claims, clock, cluster, crash, declared, doors, links, panics, refused, stream, work,
};
use std::pin::Pin;
use tests::checker::Verdict;

/// When a fault is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// With every change.
    EveryChange,
    /// With `--nightly`.
    Nightly,
}

impl Tier {
    pub fn word(self) -> &'static str {
        match self {
            Tier::EveryChange => "always",
            Tier::Nightly => "nightly",
        }
    }
}

/// How it ended.
pub enum Outcome {
    /// Every promise was kept.
    Held(Box<Verdict>, Vec<String>),
    /// One was not.
    Broken(String),
    /// This machine can't do it to us.
    Skipped(String),
}

type Running = Pin<Box<dyn Future<Output = anyhow::Result<Outcome>>>>;

/// A fault.
pub struct Row {
    pub number: &'static str,
    pub what: &'static str,
    pub tier: Tier,
    pub run: fn(Run) -> Running,
}

macro_rules! rows {
    ($($number:literal $tier:ident $what:literal => $run:expr;)*) => {
        /// All of them, in the order in which they are run.
        pub const ROWS: &[Row] = &[$(Row {
            number: $number,
            what: $what,
            tier: Tier::$tier,
            run: |run| Box::pin($run(run)),
        }),*];
    };
}

rows! {
    "0" EveryChange "nothing: the measure of the others" => crash::nothing;
    "1" EveryChange "an ingest is killed" => crash::ingest_killed;
    "2" EveryChange "a worker is killed while it handles" => crash::worker_killed;
    "3" EveryChange "NATS is killed, and away for 3 s" => crash::nats_killed;
    "4" EveryChange "Postgres is killed while codes are claimed" => crash::postgres_killed_mid_claim;
    "5" EveryChange "ingests and workers are replaced one by one" => crash::rolling_restart;
    "6" Nightly "each of three nats-servers becomes a lame duck" => cluster::lame_ducks;
    "7" Nightly "the stream's leader of three is killed" => cluster::leader_killed;
    "7b" Nightly "one of three nats-servers hangs" => cluster::one_frozen;
    "8" EveryChange "Postgres hangs for 10 s, then is away for 5 s" => crash::postgres_away;
    "8n" Nightly "Postgres is away for 60 s" => crash::postgres_away_long;
    "9" EveryChange "NATS is away for 10 s" => crash::nats_away;
    "10a" EveryChange "half open: ingest and NATS" => links::ingest_nats;
    "10b" EveryChange "half open: worker and NATS" => links::worker_nats;
    "10c" EveryChange "half open: worker and Postgres" => links::worker_postgres;
    "10d" EveryChange "one way only: what workers send to Postgres is held" => links::one_way;
    "10e" EveryChange "half open for good: worker and NATS" => links::worker_nats_long;
    "10f" EveryChange "Postgres is gone without a word, another has its address" => links::postgres_replaced;
    "10n" Nightly "a worker's cable is pulled (network namespace)" => links::cable;
    "11" Nightly "NATS has a full disk" => doors::disk_full;
    "12" EveryChange "Postgres is slow: 500 ms a query, then 5 s" => links::slow_postgres;
    "13" EveryChange "an agent is slow, another conversation's hangs" => work::slow_agent;
    "14" EveryChange "a poisoned message and one whose agent is away" => work::poison;
    "15" EveryChange "Slack: 429, 5xx, silence, cut answers, ok:false" => work::slack_in_trouble;
    "16" Nightly "an ingest's clock is ten minutes off" => clock::skewed;
    "17" EveryChange "every webhook five times at once, and again later" => work::duplicates;
    "18" EveryChange "2,000 people race for 200 codes" => claims::raced_for;
    "19" EveryChange "a tenant sends a hundred times as much" => work::noisy_tenant;
    "20" EveryChange "bodies that are too large, malformed, ambiguous" => refused::bodies;
    "21" EveryChange "forged, another's signature, replayed" => refused::forgeries;
    "22" EveryChange "slow headers, slow bodies, silent sockets" => doors::slow_sockets;
    "23" Nightly "5,000 idle connections" => doors::flood;
    "24" EveryChange "a signing secret is rotated" => declared::secret_rotated;
    "25" EveryChange "a change of which no worker is told" => declared::nobody_told;
    "26" Nightly "a worker runs out of memory" => crash::worker_out_of_memory;
    "27" EveryChange "the stream is deleted, and made anew" => stream::gone;
    "28" Nightly "the schema is one version ahead" => crash::schema_ahead;
    "29" EveryChange "a worker is frozen past its lease, and wakes" => crash::worker_frozen;
    "29n" Nightly "a worker is frozen for 60 s, and wakes" => crash::worker_frozen_long;
    "31" EveryChange "the stream loses its end, and is filled past the cursors" => stream::cut_short;
    "31b" EveryChange "the same, beside workers that go on" => stream::cut_short_beside_workers;
    "32" EveryChange "history is purged, beside idle partitions" => stream::purged;
    "33" EveryChange "a tenant is deleted that posted last in its partitions" => stream::tenant_deleted;
    "34" EveryChange "answers of Postgres to commits are lost" => links::answers_lost;
    "35" EveryChange "a worker loses Postgres while it calls agents" => links::cut_off_in_mid_call;
    "36" Nightly "workers' clocks are an hour ahead and behind" => clock::workers_skewed;
    "37" EveryChange "Postgres is restored from an earlier state" => crash::postgres_restored;
    "38" EveryChange "panics in every stage of the workers" => panics::in_every_stage;
    "30" Nightly "everything at random" => crash::at_random;
}
