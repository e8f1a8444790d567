//! Integration tests, as one program. The folders are the chapters of `tests/GUARANTEES.md`; `meta`
//! tests the tests themselves, the documents and the simulated Slack.

/// Acceptance of webhooks.
mod ingest {
    mod connections;
    mod directory;
    mod routing;
    mod several_apps;
    mod installations;
    mod placement;
    mod signatures;
    mod sdk;
    mod properties;
    mod fuzz;
    mod hardening;
    mod hostile_load;
    mod quotas;
    mod duplicates;
    mod sync_responses;
    mod ingest_deadlines;
    mod app_health;
    mod many_connections;
}

/// Link codes, commands, messages and events of installations.
mod conversations {
    mod link_codes;
    mod commands;
    mod messages;
    mod questions;
    mod installation_events;
    mod connection_cache;
}

/// Order, isolation, agents, and messages to Slack.
mod delivery {
    mod ordering;
    mod overlap;
    mod isolation;
    mod capacity;
    mod backlog;
    mod backlog_limits;
    mod memory;
    mod plans;
    mod soak;
    mod agent_headers;
    mod agents;
    mod answers;
    mod approvals;
    mod clicks;
    mod markdown;
    mod sessions;
    mod streaming;
    mod run_controls;
    mod forwarding;
    mod bolt;
    mod bolt_kinds;
    mod outbox;
    mod rate_limits;
    mod samples;
    mod token_rotation;
}

/// Processes, servers and streams that fail.
mod failures {
    mod failover;
    mod shutdown;
    mod clocks;
    mod fencing;
    mod stream_retention;
    mod stream_reset;
    mod dead_letters;
    mod chaos;
}

/// Commands of operators, keys, and replays.
mod operations {
    mod apply;
    mod apps;
    mod tenants;
    mod local_development;
    mod late_traffic;
    mod key_rotation;
    mod secrets;
    mod migrations;
    mod statements;
    mod consumers;
    mod doctor;
    mod doctor_faults;
    mod development;
    mod audit_and_redrive;
    mod audit_log;
    mod console;
    mod console_webhooks;
    mod control_api;
    mod control_connections;
    mod control_schema;
    mod control_tenants;
    mod declarations;
    mod erasure;
    mod import;
    mod install;
    mod install_attacks;
    mod install_load;
    mod members;
    mod notifications;
    mod replay;
    mod recording;
}

/// Health, metrics, logs, traces, and the runbook.
mod observability {
    mod health;
    mod readiness;
    mod traces;
    mod runbook;
}

/// Permissions, settings, manifests, and restarts.
mod deployment {
    mod permissions;
    mod settings;
    mod hostile_settings;
    mod messages;
    mod deploy;
    mod artifacts;
    mod quickstart;
    mod reference;
    mod rolling_restart;
}

/// The tests themselves, the documents, and the simulated Slack.
mod meta {
    pub mod architecture;
    mod import_order;
    mod guarantees;
    mod documents;
    mod prose;
    pub mod rust_source;
    mod regressions;
    mod checker;
    mod harness;
    mod fake_slack;
    mod fake_slack_sockets;
    mod fake_slack_streams;
    mod fake_slack_delivery;
    mod slack_simulator;
    mod bench;
}
