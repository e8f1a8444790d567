//! Repair of JSON that JavaScript and Python accept and serde_json rejects.
//!
//! All JSON that Slack, agents and apps write passes through [`repair`] before it is parsed, so
//! that an unusual value loses only itself and not the document. One pass without recursion.
//! serde_json's own options cost more: `arbitrary_precision` keeps each number as text, and
//! `unbounded_depth` lets the sender determine the stack usage.

use memchr::memchr2;
use std::borrow::Cow;

/// Maximum nesting of arrays and objects. Deeper ones are read as null. serde_json rejects 128
/// levels; the difference is for the objects in which Tidegate wraps a value.
pub const JSON_DEPTH_MAX: usize = 100;
/// Largest number that is kept. Above it serde_json and `f64::from_str` round differently.
const NUMBER_MAX: f64 = 1e308;
/// Digits of the shortest number above [`NUMBER_MAX`] without an exponent.
const LONG_NUMBER_DIGITS: usize = 309;

/// Returns JSON as text that serde_json reads: without a byte order mark; with U+FFFD for invalid
/// UTF-8 and for each escaped surrogate without its partner; with null for a number beyond the
/// range of `f64` and for an array or object nested deeper than [`JSON_DEPTH_MAX`].
pub fn repair(json: &[u8]) -> Cow<'_, str> {
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    match String::from_utf8_lossy(json) {
        Cow::Borrowed(text) => repair_values(text),
        Cow::Owned(text) => Cow::Owned(repair_values(&text).into_owned()),
    }
}

/// Text with replacements, copied from the first one on.
struct Replacements<'a> {
    text: &'a str,
    repaired: String,
    copied: usize,
}

impl<'a> Replacements<'a> {
    fn replace(&mut self, from: usize, to: usize, replacement: &str) {
        self.repaired.push_str(&self.text[self.copied..from]);
        self.repaired.push_str(replacement);
        self.copied = to;
    }

    fn finish(mut self) -> Cow<'a, str> {
        if self.copied == 0 {
            return Cow::Borrowed(self.text);
        }
        self.repaired.push_str(&self.text[self.copied..]);
        Cow::Owned(self.repaired)
    }
}

fn repair_values(text: &str) -> Cow<'_, str> {
    let mut replacements = Replacements { text, repaired: String::new(), copied: 0 };
    let (bytes, mut at, mut depth) = (text.as_bytes(), 0, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        at = match byte {
            b'"' => {
                let (end, has_escapes) = string_end(bytes, at + 1);
                if has_escapes {
                    replace_lone_surrogates(&mut replacements, at, end);
                }
                end
            }
            b'[' | b'{' if depth == JSON_DEPTH_MAX => {
                // A document with an unterminated value is invalid JSON anyway.
                let Some(end) = container_end(bytes, at) else { break };
                replacements.replace(at, end, "null");
                end
            }
            b'[' | b'{' => {
                depth += 1;
                at + 1
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                at + 1
            }
            b'-' | b'0'..=b'9' => {
                let length = bytes[at..].iter().position(|b| !is_number_byte(*b));
                let end = length.map_or(bytes.len(), |length| at + length);
                if is_out_of_range(&text[at..end]) {
                    replacements.replace(at, end, "null");
                }
                end
            }
            _ => at + 1,
        };
    }
    replacements.finish()
}

/// Returns the index after the string that begins before `at`, and whether it has escapes.
fn string_end(bytes: &[u8], mut at: usize) -> (usize, bool) {
    let mut has_escapes = false;
    let next = |at: usize| memchr2(b'"', b'\\', bytes.get(at..)?);
    while let Some(distance) = next(at) {
        if bytes[at + distance] == b'"' {
            return (at + distance + 1, has_escapes);
        }
        has_escapes = true;
        at += distance + 2;
    }
    (bytes.len(), has_escapes)
}

/// Returns the index after the array or object that begins at `at`.
fn container_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        match *bytes.get(at)? {
            b'"' => {
                at = string_end(bytes, at + 1).0;
                continue;
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth == 1 => return Some(at + 1),
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
}

fn is_number_byte(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'.' | b'+' | b'-' | b'e' | b'E')
}

fn is_out_of_range(number: &str) -> bool {
    let has_exponent = || number.bytes().any(|b| matches!(b, b'e' | b'E'));
    (number.len() >= LONG_NUMBER_DIGITS || has_exponent())
        && number.parse().is_ok_and(|value: f64| value.abs() > NUMBER_MAX)
}

fn replace_lone_surrogates(replacements: &mut Replacements<'_>, mut at: usize, end: usize) {
    const HIGH: std::ops::RangeInclusive<u16> = 0xd800..=0xdbff;
    const LOW: std::ops::RangeInclusive<u16> = 0xdc00..=0xdfff;
    let text = replacements.text;
    let next = |at: usize| text.as_bytes().get(at..end)?.iter().position(|&b| b == b'\\');
    while let Some(backslash) = next(at).map(|distance| at + distance) {
        at = match (unicode_escape(text, backslash), unicode_escape(text, backslash + 6)) {
            (Some(first), Some(second)) if HIGH.contains(&first) && LOW.contains(&second) => {
                backslash + 12
            }
            (Some(unit), _) if HIGH.contains(&unit) || LOW.contains(&unit) => {
                replacements.replace(backslash, backslash + 6, "\\ufffd");
                backslash + 6
            }
            _ => backslash + 2,
        };
    }
}

/// Returns the UTF-16 unit of an escape `\uXXXX` at this index.
fn unicode_escape(text: &str, at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
    let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit()); // `parse` would accept a `+`
    is_hex.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(json: &str) -> Value {
        serde_json::from_str(&repair(json.as_bytes())).expect(json)
    }

    #[test]
    fn repairs_lone_surrogates() {
        for (json, expected) in [
            (&br#""plain \" \u00e9 \\ud83d""#[..], r#"plain " é \ud83d"#),
            (br#""\ud83d\ude00 \uD83D\uDE00""#, "😀 😀"),
            (br#""cut \ud83d""#, "cut \u{fffd}"),
            (br#""\ude00\ud83d \ud83d\ud83d\ude00""#, "\u{fffd}\u{fffd} \u{fffd}😀"),
            (br#""\ud83d\n""#, "\u{fffd}\n"),
            (b"\xef\xbb\xbf\"mark\"", "mark"),
            (b"\"\xff\xc3\xa9\"", "\u{fffd}é"),
        ] {
            let repaired = repair(json);
            assert_eq!(serde_json::from_str::<String>(&repaired).ok().as_deref(), Some(expected));
        }
        for broken in [
            &b"\"\\"[..],
            b"\"\\u",
            b"\"\\ud8",
            b"\"\\\xc3\xa9\\ud800",
            b"\"\\u+123",
            b"\\",
            b"\"",
            b"]}]1e999",
        ] {
            repair(broken);
        }
        assert!(matches!(repair(br#"{"a":"\ud83d\ude00"}"#), Cow::Borrowed(_)));
    }

    #[test]
    fn replaces_numbers_out_of_range() {
        let digits = |n: usize| "9".repeat(n);
        for (number, is_kept) in [
            ("1e999", false),
            ("-1E+999", false),
            ("1.5e99999999999999999999", false),
            (&*digits(310), false),
            (&*format!("{}.5", digits(400)), false),
            ("1.7976931348623157e308", false),
            ("9.9e307", true),
            ("-0.0", true),
            ("0e999", true),
            ("1e-99999999999", true),
            (&*digits(300), true),
            (&*format!("{}e-400", digits(400)), true),
            (&*format!("0.{}", digits(400)), true),
            ("1518467820", true),
        ] {
            let json = format!(r#"{{"a":{number},"b":[{number}, {number}],"c":"1e999"}}"#);
            let value = read(&json);
            assert_eq!(value["a"].is_number(), is_kept, "{number}");
            assert_eq!((&value["b"][1], &value["c"]), (&value["a"], &json!("1e999")), "{number}");
        }
        assert!(matches!(repair(b"[1,2.5e3,\"1e999\",true]"), Cow::Borrowed(_)));
    }

    #[test]
    fn replaces_deep_values() {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            for (depth, is_kept) in [(JSON_DEPTH_MAX, true), (JSON_DEPTH_MAX + 1, false)] {
                let outer = depth - 1; // the object around it is one level
                let json = format!(
                    r#"{{"deep":{}7{},"after":"x"}}"#,
                    open.repeat(outer),
                    close.repeat(outer)
                );
                let value = read(&json);
                assert_eq!(value["after"], "x");
                assert_eq!(value.to_string().contains('7'), is_kept, "{open} {depth}");
            }
        }
        let brackets =
            format!(r#"{{"x":{}["]\"}}",{{"}}":1}}]{},"y":1}}"#, "[".repeat(99), "]".repeat(99));
        assert_eq!(read(&brackets)["y"], 1, "brackets in strings do not count");
    }

    /// Unterminated values cause no recursion, either.
    #[test]
    fn survives_a_million_brackets() {
        const MIB: usize = 1 << 20;
        for open in ["[", r#"{"a":"#] {
            let json = open.repeat(MIB / open.len());
            assert!(serde_json::from_str::<Value>(&repair(json.as_bytes())).is_err());
        }
        let closed = format!("{}{}", "[".repeat(MIB), "]".repeat(MIB));
        assert!(read(&closed).is_array());
    }

    /// JSON without a reason for a repair stays unchanged.
    #[test]
    fn keeps_all_other_json() {
        bolero::check!()
            .with_iterations(2_000)
            .with_type::<(Vec<u8>, Vec<(String, i64)>)>()
            .for_each(|(bytes, fields)| {
                repair(bytes);
                let value = fields.iter().rev().fold(Value::Null, |inner, (key, n)| {
                    Value::Array(vec![json!({ key: n }), json!(key), inner])
                });
                let is_deep = fields.len() >= JSON_DEPTH_MAX - 1;
                let text = value.to_string();
                assert!(is_deep || repair(text.as_bytes()) == text, "{text}");
            });
    }
}
