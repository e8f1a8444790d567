//! Properties of decisions for all inputs.

use super::{setup::*, *};
use serde_json::{Map, Value};
use shared::domain::MediaType;

#[rustfmt::skip]
const TWEAKS: [Tweak; 16] = [
    deleted, unknown, pending, stopped, trigger_processed, preview, no_team, no_bot,
    answer_bots, dm_only, nowhere, bound, own_handler, no_agent, forward, agents_both,
];

#[rustfmt::skip]
const NAMES: [&str; 32] = [
    "type", "event", "event_id", "event_time", "team_id", "authorizations", "channel",
    "channel_type", "user", "user_team", "bot_id", "text", "ts", "thread_ts", "hidden",
    "subtype", "metadata", "event_type", "event_payload", "hops", "item", "message",
    "assistant_thread", "channel_id", "view", "id", "team", "container", "tokens", "bot",
    "old_channel_id", "new_channel_id",
];

#[rustfmt::skip]
const TEXTS: [&str; 32] = [
    "event_callback", "message", "app_mention", "app_rate_limited", "app_uninstalled",
    "tokens_revoked", "channel_id_changed", "team_join", "view_submission",
    "block_suggestion", "block_actions", "tidegate", "bot_message", "file_share", "im",
    "C1", "D1", "U1", "U0BOT", "USLACKBOT", "T0001TEAM", "E1", "1.5",
    "99999999999999999999", "/lobu link 7K3M-Q2XW-9FHA", "7K3M-Q2XW-9FHA", "lobu clear",
    "<@U0BOT> /lobu try", "<@", "\u{0}", "", "\u{feff}\u{2014}&lt;",
];

/// Converts bytes to JSON with the names and texts that Slack uses.
fn jsonish(bytes: &mut impl Iterator<Item = u8>, depth: usize) -> Value {
    let byte = bytes.next().unwrap_or_default();
    match byte % 8 {
        0 | 1 if depth > 0 => {
            let mut map = Map::new();
            for _ in 0..usize::from(byte / 8 % 12) {
                let name = NAMES[usize::from(bytes.next().unwrap_or_default()) % NAMES.len()];
                map.insert(name.into(), jsonish(bytes, depth - 1));
            }
            map.into()
        }
        2 if depth > 0 => {
            (0..byte / 8 % 4).map(|_| jsonish(bytes, depth - 1)).collect::<Vec<_>>().into()
        }
        3 => u64::MAX.wrapping_shr(u32::from(byte)).into(),
        4 => (byte & 8 == 0).into(),
        5 => Value::Null,
        _ => TEXTS[usize::from(bytes.next().unwrap_or_default()) % TEXTS.len()].into(),
    }
}

type Input = (u8, u16, Vec<u8>);

fn body(shape: u8, bytes: &[u8]) -> Body {
    let kinds = [
        WebhookKind::Event,
        WebhookKind::Command,
        WebhookKind::Interaction,
        WebhookKind::Options,
        WebhookKind::Unknown,
    ];
    let mut rest = bytes.iter().copied();
    let body = match shape / 8 % 6 {
        0 => (WebhookKind::Event, MediaType::Json, bytes.to_vec()),
        1 => (WebhookKind::Event, MediaType::Form, bytes.to_vec()),
        2 => payload(jsonish(&mut rest, 4)),
        3 => event_body(jsonish(&mut rest, 3)),
        4 => {
            let text = |rest: &mut std::iter::Copied<std::slice::Iter<'_, u8>>| {
                TEXTS[usize::from(rest.next().unwrap_or_default()) % TEXTS.len()]
            };
            let names = ["command", "text", "team_id", "channel_id", "user_id", "response_url"];
            form(&names.map(|name| (name, text(&mut rest))))
        }
        _ => (WebhookKind::Event, MediaType::Json, jsonish(&mut rest, 5).to_string().into_bytes()),
    };
    (kinds[usize::from(shape) % kinds.len()], body.1, body.2)
}

fn tweaks(bits: u16) -> Vec<Tweak> {
    // The connection is removed last: the other tweaks need it.
    let chosen = (0..16).rev().filter(|n| bits >> n & 1 == 1);
    chosen.map(|n| TWEAKS[n]).collect()
}

#[test]
fn decides_any_webhook() {
    bolero::check!().with_iterations(5_000).with_type::<Input>().for_each(
        |(shape, bits, bytes)| {
            let (body, setup) = (body(*shape, bytes), setup(&tweaks(*bits)));
            with_webhook(&body, |webhook| {
                let _ = (ids(webhook), named_agent_query(webhook, &setup.facts, &setup.options));
                let decision = decide(webhook, &setup.facts, &setup.named_agents, &setup.options);
                let _ = show(&decision);
                let message = agent_message(webhook, None);
                if let Some(message) = message {
                    let _ = message.reply(serde_json::json!({}), bits & 1 == 1, None);
                }
                if let Decision::Apply(effects) = decision {
                    let Effects { consume, changes, messages, delivery, trigger, .. } = &*effects;
                    let nothing = consume.is_none() && changes.is_empty() && messages.is_empty();
                    assert!(!nothing || delivery.is_some(), "effects without an effect");
                    assert!(changes.len() + usize::from(consume.is_some()) <= 1, "several changes");
                    assert!(trigger.is_none() || *trigger == lookup(webhook).trigger);
                }
            });
        },
    );
}

#[test]
fn ignores_duplicates() {
    bolero::check!().with_iterations(5_000).with_type::<Input>().for_each(
        |(shape, bits, bytes)| {
            let tweaks = [tweaks(*bits), vec![processed as Tweak]].concat();
            assert_eq!(show(&decide_in(&body(*shape, bytes), &tweaks)), "ignore duplicate");
        },
    );
}

#[test]
fn decides_equal_facts_equally() {
    bolero::check!().with_iterations(5_000).with_type::<Input>().for_each(
        |(shape, bits, bytes)| {
            let (body, tweaks) = (body(*shape, bytes), tweaks(*bits));
            assert_eq!(show(&decide_in(&body, &tweaks)), show(&decide_in(&body, &tweaks)));
        },
    );
}
