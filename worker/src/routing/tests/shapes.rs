//! Test of the receiver of each webhook that Slack documents.

use super::{setup::*, *};

#[path = "../../../../tests/harness/shapes.rs"]
#[allow(dead_code)] // the columns that ingest's tests read
mod table;

pub(super) use table::{Shape, all};

/// Returns the receiver of a webhook: the id of an agent, `gateway` if Tidegate itself acts on it,
/// or `none`.
fn receiver(decision: &Decision) -> String {
    match decision {
        Decision::Ignore { .. } => "none".into(),
        Decision::DeadLetter { reason, .. } => format!("dead letter: {reason}"),
        Decision::Overflow => Decision::OVERFLOW.into(),
        Decision::Apply(effects) => match &effects.delivery {
            Some(delivery) => delivery.agent.to_string(),
            None => "gateway".into(),
        },
    }
}

#[test]
fn delivers_each_shape() {
    let mut wrong = Vec::new();
    for shape in all().iter().filter(|shape| shape.is_stored()) {
        let body = body_of(shape);
        let install: Tweak = match shape.install.as_deref() {
            Some("E0001ORG") => org_wide,
            _ => |_| (),
        };
        let to_app = receiver(&decide_in(&body, &[install, forward, app_here]));
        let to_agent = receiver(&decide_in(&body, &[install]));
        let app = match to_app.as_str() {
            "app" => "channel",
            "support" => "own",
            other => other,
        };
        let agent = if to_agent == "support" { "agent" } else { &to_agent };
        if (app, agent) != (&shape.app, &shape.agent) {
            let Shape { name, app: due, agent: due_agent, .. } = shape;
            wrong.push(format!("{name}: {app}, {agent}; due: {due}, {due_agent}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
