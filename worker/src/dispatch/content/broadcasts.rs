//! Removal of broadcasts: mentions that notify a channel or a user group. Pure.
//!
//! Slack documents them for its own markup (`<!channel>`), but not how it treats them in Markdown.
//! So Markdown loses them both in the source and in the rendered text: without emphasis, and with
//! character references resolved.

/// Zero-width space, inserted to break a mention.
const BREAK: char = '\u{200b}';
/// Prefixes of mentions. They are broken anywhere in a text.
const MENTIONS: [&str; 8] =
    ["!channel", "!here", "!everyone", "!group", "!subteam", "@channel", "@here", "@everyone"];
/// Characters of the longest of [`MENTIONS`].
const MENTION_CHARS_MAX: usize = 9;
/// Characters of the longest character reference without its semicolon: `&#x1F4A9`.
const REFERENCE_CHARS_MAX: usize = 10;
/// Named references of characters in mentions.
const NAMED_REFERENCES: [&str; 3] = ["&excl", "&commat", "&Hat"];

/// State for the removal of broadcasts from Markdown that arrives in pieces.
#[derive(Debug, Clone, Default)]
pub struct Broadcasts {
    /// Last characters of the rendered text, in lower case.
    seen: Vec<char>,
    /// Last characters of the source.
    source: Vec<char>,
}

impl Broadcasts {
    /// Returns the next piece of a text without broadcasts. Breaks mentions that span several
    /// pieces, too.
    pub fn remove(&mut self, text: &str) -> String {
        let text = replace_mentions(text, false);
        let mut plain = String::with_capacity(text.len());
        for c in text.chars() {
            if self.completes_mention(c) || (c == ';' && self.is_reference_of_mention()) {
                plain.push(BREAK);
            }
            plain.push(c);
        }
        plain
    }

    /// Adds a character. Returns whether it completes a mention.
    fn completes_mention(&mut self, c: char) -> bool {
        keep_last(&mut self.source, c, REFERENCE_CHARS_MAX);
        // Markdown does not render these characters.
        if matches!(c, '*' | '_' | '~' | '`' | '\\' | '[') {
            return false;
        }
        keep_last(&mut self.seen, c.to_ascii_lowercase(), MENTION_CHARS_MAX);
        let ends_with = |mention: &&str| {
            let length = mention.len();
            self.seen.len() >= length
                && self.seen[self.seen.len() - length..].iter().copied().eq(mention.chars())
        };
        MENTIONS.iter().any(ends_with)
    }

    /// Returns whether the source ends with a reference to a character of mentions, such as
    /// `&#64;`.
    fn is_reference_of_mention(&self) -> bool {
        let Some(at) = self.source.iter().rposition(|c| *c == '&') else { return false };
        let reference: String = self.source[at..].iter().collect();
        let reference = reference.trim_end_matches(';');
        let code = match reference.strip_prefix("&#") {
            Some(number) => match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => number.parse().ok(),
            },
            None => return NAMED_REFERENCES.contains(&reference),
        };
        let is_of_mention = |c: char| c.is_ascii_alphanumeric() || "!@^<".contains(c);
        code.and_then(char::from_u32).is_some_and(is_of_mention)
    }
}

fn keep_last(chars: &mut Vec<char>, c: char, max: usize) {
    if chars.len() == max {
        chars.remove(0);
    }
    chars.push(c);
}

/// Returns Markdown without broadcasts.
pub fn plain_markdown(text: &str) -> String {
    Broadcasts::default().remove(text)
}

/// Returns mrkdwn text without broadcasts. Keeps dates (`<!date^…>`) and escapes anything else that
/// begins with `<!`.
pub fn without_broadcasts(text: &str) -> String {
    replace_mentions(text, true)
}

fn replace_mentions(text: &str, escapes_others: bool) -> String {
    let (mut plain, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("<!") {
        plain.push_str(&rest[..at]);
        let command = &rest[at + 2..];
        let (word, after) = command.split_once('>').unwrap_or((command, ""));
        let (name, label) = word.split_once('|').unwrap_or((word, ""));
        rest = match name {
            "channel" | "here" | "everyone" | "group" => {
                plain.push('@');
                plain.push_str(name);
                after
            }
            _ if name.starts_with("subteam^") => {
                plain.push('@');
                plain.push_str(match label.trim_start_matches('@') {
                    "" => "group",
                    label => label,
                });
                after
            }
            _ => {
                let is_kept = !escapes_others || name.starts_with("date^");
                plain.push_str(if is_kept { "<!" } else { "&lt;!" });
                command
            }
        };
    }
    plain + rest
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use pulldown_cmark::{Event, Options, Parser, TagEnd};

    /// Returns whether Markdown has a broadcast, in its source or in the rendered text.
    pub(crate) fn notifies(markdown: &str) -> bool {
        let has_mention = |text: &str| {
            let text = text.to_lowercase();
            ["<!channel", "<!here", "<!everyone", "<!group", "<!subteam", "@channel", "@here"]
                .iter()
                .chain(&["@everyone"])
                .any(|mention| text.contains(mention))
        };
        let mut seen = String::new();
        for event in Parser::new_ext(markdown, Options::ENABLE_STRIKETHROUGH) {
            match event {
                Event::Text(text) | Event::Code(text) => seen.push_str(&text),
                Event::Html(text) | Event::InlineHtml(text) => seen.push_str(&text),
                Event::End(TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough) => {}
                Event::Start(pulldown_cmark::Tag::Emphasis | pulldown_cmark::Tag::Strong) => {}
                Event::Start(pulldown_cmark::Tag::Strikethrough) => {}
                _ => seen.push('\n'),
            }
        }
        has_mention(markdown) || has_mention(&seen)
    }

    #[test]
    fn replaces_broadcasts() {
        for (text, expected) in [
            ("hi <!channel>", "hi @channel"),
            ("<!here|here> and <!everyone>, <!group>", "@here and @everyone, @group"),
            ("<!subteam^S1|@team> <!subteam^S2>", "@team @group"),
            ("<!<!here>channel>", "&lt;!@herechannel>"),
            ("<!date^1392734382^{date}|then> <!channel", "<!date^1392734382^{date}|then> @channel"),
            (
                "<!CHANNEL> <@U1> <#C1> <https://example.com>",
                "&lt;!CHANNEL> <@U1> <#C1> <https://example.com>",
            ),
        ] {
            assert_eq!(without_broadcasts(text), expected);
        }
    }

    #[test]
    fn breaks_mentions_in_markdown() {
        for (text, expected) in [
            ("hi <!channel>", "hi @channe\u{200b}l"),
            ("@here <!subteam^S1|@team>", "@her\u{200b}e @team"),
            ("<!DOCTYPE html> <!-- kept --> @home", "<!DOCTYPE html> <!-- kept --> @home"),
            ("me@example.com &#39; &amp; &lt;", "me@example.com &#39; &amp; &lt;"),
            ("<@U1>, <#C1>", "<@U1>, <#C1>"),
        ] {
            assert_eq!(plain_markdown(text), expected);
        }
        for text in [
            "<!CHANNEL>",
            "@he**re**",
            "@*everyone*",
            "&#64;here",
            "&commat;here",
            "<&#33;channel>",
            "<&#x21;here|x>",
            "@h&#101;re",
            "@Channel",
            r"<\!here>",
            "`<!here>`",
            "<!sub_team_^S1>",
        ] {
            assert!(notifies(text) || text.contains('_'), "{text}");
            assert!(!notifies(&plain_markdown(text)), "{text}");
        }
    }

    /// A text has no broadcast, at whatever position it is split.
    #[test]
    fn breaks_split_mentions() {
        let text = "a <!channel> b <!subteam^S1|team> <!here|here> @everyone &#64;here";
        for cut in (0..=text.len()).filter(|at| text.is_char_boundary(*at)) {
            let (first, second) = text.split_at(cut);
            let mut broadcasts = Broadcasts::default();
            let joined = broadcasts.remove(first) + &broadcasts.remove(second);
            assert!(!notifies(&joined), "{joined}");
        }
    }
}
