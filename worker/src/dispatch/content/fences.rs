//! Code fences of Markdown that is split into messages: a message that ends within a code block
//! closes its fence, and the next one reopens it. Pure.

/// Maximum characters kept of a line. Only its beginning can be a fence.
const LINE_CHARS_MAX: usize = 100;

/// Open code fence.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fence {
    marker: char,
    length: usize,
    /// Info string: the rest of the opening line, such as the language.
    info: String,
}

/// State of code fences at a position of a text.
#[derive(Debug, Clone, Default)]
pub struct Fences {
    open: Option<Fence>,
    /// Beginning of the current line.
    line: String,
    /// True if the current line has text.
    is_in_line: bool,
}

impl Fences {
    /// Adds text.
    pub fn push(&mut self, text: &str) {
        for piece in text.split_inclusive('\n') {
            let room = LINE_CHARS_MAX.saturating_sub(self.line.chars().count());
            self.line.extend(piece.trim_end_matches('\n').chars().take(room));
            self.is_in_line = !piece.ends_with('\n');
            if !self.is_in_line {
                self.open = self.at_end_of_line();
                self.line.clear();
            }
        }
    }

    /// Returns whether the text ends within a code block.
    pub fn is_open(&self) -> bool {
        self.at_end_of_line().is_some()
    }

    /// Returns whether the text ends at the start of a line.
    pub fn is_at_line_start(&self) -> bool {
        !self.is_in_line
    }

    /// Returns the text that closes an open fence, empty without one.
    pub fn closing(&self) -> String {
        let Some(fence) = self.at_end_of_line() else { return String::new() };
        let line_end = if self.is_in_line { "\n" } else { "" };
        format!("{line_end}{}", fence.marker.to_string().repeat(fence.length))
    }

    /// Begins another message. Returns the text that reopens an open fence, empty without one.
    pub fn reopen(&mut self) -> String {
        let open = self.at_end_of_line();
        *self = Self { open, ..Self::default() };
        self.open.as_ref().map_or_else(String::new, |fence| {
            format!("{}{}\n", fence.marker.to_string().repeat(fence.length), fence.info)
        })
    }

    /// Returns the open fence, as if the current line ended here.
    fn at_end_of_line(&self) -> Option<Fence> {
        let line = self.line.trim();
        let marker = line.chars().next().filter(|c| matches!(c, '`' | '~'));
        let length = marker.map_or(0, |marker| line.chars().take_while(|c| *c == marker).count());
        let Some(marker) = marker.filter(|_| length >= 3) else { return self.open.clone() };
        let info = &line[length..];
        match &self.open {
            Some(open) => {
                let closes = marker == open.marker && length >= open.length && info.is_empty();
                self.open.clone().filter(|_| !closes)
            }
            None if marker == '`' && info.contains('`') => None, // inline code
            None => Some(Fence { marker, length, info: info.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str) -> (String, String) {
        let mut fences = Fences::default();
        text.chars().for_each(|c| fences.push(c.encode_utf8(&mut [0; 4])));
        let mut at_once = Fences::default();
        at_once.push(text);
        assert_eq!(fences.closing(), at_once.closing());
        (fences.closing(), fences.reopen())
    }

    #[test]
    fn closes_and_reopens_code() {
        for (text, closing, opening) in [
            ("plain", "", ""),
            ("a\n```rust\nfn", "\n```", "```rust\n"),
            ("a\n```rust\nfn\n", "```", "```rust\n"),
            ("a\n```rust\nfn\n```", "", ""),
            ("```\n~~~\n", "```", "```\n"),
            ("~~~~ text\n~~~\n", "~~~~", "~~~~ text\n"),
            ("1. list\n   ```sh\n   ls\n", "```", "```sh\n"),
            ("```not a fence```\n", "", ""),
            ("``two\n", "", ""),
        ] {
            assert_eq!(after(text), (closing.to_owned(), opening.to_owned()), "{text:?}");
        }
    }
}
