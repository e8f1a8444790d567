//! The matrix: every fault, when it is run, and what runs it.
//!
//! Some faults need no load, only a case: those are tests of `cargo test`, named here.

use crate::{Run, clock, cluster, crash, doors, links, work};
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
    /// `cargo test` does it: these tests.
    Elsewhere(&'static [&'static str]),
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
    "10n" Nightly "a worker's cable is pulled (network namespace)" => links::cable;
    "11" Nightly "NATS has a full disk" => doors::disk_full;
    "12" EveryChange "Postgres is slow: 500 ms a query, then 5 s" => links::slow_postgres;
    "13" EveryChange "an agent is slow, another conversation's hangs" => work::slow_agent;
    "14" EveryChange "a poisoned message and one whose agent is away" => work::poison;
    "15" EveryChange "Slack: 429, 5xx, silence, cut answers, ok:false" => work::slack_in_trouble;
    "16" Nightly "an ingest's clock is ten minutes off" => clock::skewed;
    "17" EveryChange "every webhook five times at once, and again later" => work::duplicates;
    "18" EveryChange "2,000 people race for 200 codes" => elsewhere::claims;
    "19" EveryChange "a tenant sends a hundred times as much" => work::noisy_tenant;
    "20" EveryChange "bodies that are too large, malformed, ambiguous" => elsewhere::bodies;
    "21" EveryChange "forged, another's signature, replayed" => elsewhere::forged;
    "22" EveryChange "slow headers, slow bodies, silent sockets" => elsewhere::slow_sockets;
    "23" Nightly "5,000 idle connections" => doors::flood;
    "24" EveryChange "a signing secret is rotated" => elsewhere::rotation;
    "25" EveryChange "a change of which no worker is told" => elsewhere::notify_lost;
    "26" Nightly "a worker runs out of memory" => crash::worker_out_of_memory;
    "27" EveryChange "the stream is gone, or another" => elsewhere::stream_gone;
    "28" Nightly "the schema is one version ahead" => crash::schema_ahead;
    "29" EveryChange "a worker is frozen past its lease, and wakes" => crash::worker_frozen;
    "29n" Nightly "a worker is frozen for 60 s, and wakes" => crash::worker_frozen_long;
    "30" Nightly "everything at random" => crash::at_random;
}

/// Faults that are cases, and the tests that are them.
mod elsewhere {
    use super::{Outcome, Run};

    macro_rules! cases {
        ($($name:ident $($test:literal)*;)*) => {
            $(pub async fn $name(_: Run) -> anyhow::Result<Outcome> {
                const TESTS: &[&str] = &[$($test),*];
                written_down(TESTS)?;
                Ok(Outcome::Elsewhere(TESTS))
            })*
        };
    }

    cases! {
        claims "links::two_thousand_links_at_once_for_two_hundred_codes_make_two_hundred_bindings";
        bodies
            "signatures::what_is_too_large_or_no_form_or_json_is_refused_before_it_is_read"
            "hardening::a_body_whose_length_can_be_read_in_two_ways_is_refused_and_nothing_after_it_is_a_request"
            "hardening::a_body_over_the_limit_is_refused_by_its_length_before_it_is_sent"
            "fuzz::no_body_makes_classify_panic";
        forged "signatures::a_forged_webhook_is_refused_and_nothing_is_stored";
        slow_sockets "hardening::a_silent_or_slow_socket_is_closed_in_time_and_disturbs_nobody";
        rotation "directory::a_rotated_signing_secret_is_in_force_on_every_ingest_when_the_verb_returns";
        notify_lost "hydration::a_change_nobody_was_told_of_is_seen_within_half_a_minute";
        stream_gone
            "budget::without_a_stream_slack_is_told_so_in_time_and_a_migration_mends_it"
            "generation::what_comes_after_a_stream_was_made_anew_is_handled_and_nothing_twice"
            "generation::what_expired_before_it_was_read_is_said_aloud_and_what_is_left_is_handled";
    }

    /// A test that is named here has to be there.
    fn written_down(tests: &[&str]) -> anyhow::Result<()> {
        for test in tests {
            let (chapter, name) = test.split_once("::").unwrap_or_default();
            let path = format!("{}/it/{chapter}.rs", env!("CARGO_MANIFEST_DIR"));
            let there = std::fs::read_to_string(&path)
                .is_ok_and(|text| text.contains(&format!("fn {name}(")));
            anyhow::ensure!(there, "there is no test {test}");
        }
        Ok(())
    }
}
