//! Generator of response bodies of Slack, agents and apps, for fuzz targets.

use serde_json::{Map, Value};

#[rustfmt::skip]
const NAMES: [&str; 32] = [
    "text", "blocks", "ephemeral", "thread", "error", "ok", "type", "options", "option_groups",
    "response_action", "errors", "view", "id", "title", "height", "elements", "response_type",
    "replace_original", "delete_original", "attachments", "messages", "metadata", "event_type",
    "event_payload", "hops", "response_metadata", "next_cursor", "channel", "ts", "name", "value",
    "files",
];

#[rustfmt::skip]
const TEXTS: [&str; 24] = [
    "", "hi", "\u{0}", "\u{feff}", "\u{202e}x", "errors", "update", "push", "clear", "modal",
    "tidegate", "mark", "channel_not_found", "ratelimited", "token_expired", "internal_error",
    "invalid_blocks", "used_url", "unhandled request", "no handler found", "1.5", "C1",
    "<!channel>", "99999999999999999999",
];

/// Converts bytes to JSON that contains only the given names and texts.
pub fn json(
    bytes: &mut impl Iterator<Item = u8>,
    depth: usize,
    names: &[&str],
    texts: &[&str],
) -> Value {
    let byte = bytes.next().unwrap_or_default();
    match byte % 8 {
        0 | 1 if depth > 0 => {
            let mut map = Map::new();
            for _ in 0..usize::from(byte / 8 % 12) {
                let name = names[usize::from(bytes.next().unwrap_or_default()) % names.len()];
                map.insert(name.into(), json(bytes, depth - 1, names, texts));
            }
            map.into()
        }
        2 if depth > 0 => (0..byte / 8 % 4)
            .map(|_| json(bytes, depth - 1, names, texts))
            .collect::<Vec<_>>()
            .into(),
        3 => u64::MAX.wrapping_shr(u32::from(byte)).into(),
        4 => (byte & 8 == 0).into(),
        5 => Value::Null,
        _ => texts[usize::from(bytes.next().unwrap_or_default()) % texts.len()].into(),
    }
}

/// Returns a response body. If the first byte is not ASCII, the other bytes are converted to JSON;
/// otherwise the input is the body.
pub fn body(input: &[u8]) -> Vec<u8> {
    match input {
        [first, rest @ ..] if !first.is_ascii() => {
            json(&mut rest.iter().copied(), 4, &NAMES, &TEXTS).to_string().into_bytes()
        }
        bytes => bytes.to_vec(),
    }
}
