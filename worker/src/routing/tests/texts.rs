//! Fuzz target for the texts that people write: commands, mentions and link codes.

use super::{setup::*, *};
use std::time::Duration;

const INPUTS: usize = 20_000;
const TIME: Duration = Duration::from_secs(5);
const STARTS: [&str; 8] =
    ["", "/lobu ", "lobu ", "/lobu link ", "link ", "<@U0BOT> ", "<@U0BOT|lobu> /lobu ", "<@"];

/// Checks that no text becomes a dead letter. The input has a byte for the start of the text, one
/// for the surface and the connection, and the rest of the text.
fn decides_text(input: &[u8]) {
    let [start, place, rest @ ..] = input else { return };
    let start = STARTS[usize::from(*start) % STARTS.len()];
    let text = format!("{start}{}", String::from_utf8_lossy(rest));
    let body = match place % 4 {
        0 => im(&text),
        1 => channel(&text),
        2 => mention(&text),
        _ => slash("/lobu", &text),
    };
    let tweaks: [&[Tweak]; 4] = [&[], &[preview], &[preview, agents_both], &[dm_only, no_bot]];
    let decision = decide_in(&body, tweaks[usize::from(place / 4) % tweaks.len()]);
    assert!(!matches!(decision, Decision::DeadLetter { .. }), "{text:?}: {}", show(&decision));
}

#[test]
fn decides_any_text() {
    bolero::check!().with_iterations(INPUTS).for_each(decides_text);
    bolero::check!().with_test_time(TIME).for_each(decides_text);
}
