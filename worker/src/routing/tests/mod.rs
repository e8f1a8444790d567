//! Table tests of decisions: a row is a webhook, the facts, and the decision as one line.

/// Defines a test for each row of a table: a webhook, the facts, and the decision.
macro_rules! decisions {
    ($($name:ident: $webhook:expr, [$($tweak:ident),*] => $decision:expr;)*) => {$(
        #[test]
        fn $name() {
            check(&[($webhook, &[$($tweak),*], &$decision)]);
        }
    )*};
}

mod setup;
mod shapes;
mod webhooks;
mod conversations;
mod commands;
mod parts;
mod texts;
mod properties;
mod questions;
mod clicks;

use super::*;
use serde_json::json;

const TO_AGENT: &str = "delivery: to acme/support s1 background; trigger";
const TO_APP: &str = "delivery: to acme/support s1 background";
const TO_APP_FIRST: &str = "delivery: to acme/support s1 interactive";
const TO_HANDLER: &str = "delivery: to */gateway s1 background";
const TO_WORKER: &str = "delivery: to */gateway s1 interactive";
const UNLINKED: &str = "This conversation isn't linked to an agent. \
    Ask the owner of an agent for a code, then use `/lobu link <code>`.";
const BY_DEFAULT: &str = "*Support* answers here by default. Session 1.";
