//! Filter before the parser of event streams, which bounds neither lines nor events and fails on
//! bytes that are not UTF-8.

use bytes::Bytes;

/// Maximum bytes of an event, with its field names. Comments do not count.
pub(super) const EVENT_BYTES_MAX: usize = 64 * 1024;

/// Event of more than [`EVENT_BYTES_MAX`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventTooLongError;

/// Filter of one stream. Counts the bytes of the current event without keeping them.
#[derive(Debug, Default)]
pub(super) struct EventFilter {
    /// Beginning of a character that the next chunk continues: up to three bytes.
    partial: Vec<u8>,
    event_bytes: usize,
    line: Line,
    /// The last byte was a CR: an LF after it belongs to it.
    after_cr: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Line {
    #[default]
    Start,
    Field,
    Comment,
}

impl EventFilter {
    /// Returns the chunk with invalid UTF-8 replaced by U+FFFD. Fails if an event is too long.
    pub(super) fn push(&mut self, chunk: Bytes) -> Result<Bytes, EventTooLongError> {
        let chunk = match self.partial.is_empty() && std::str::from_utf8(&chunk).is_ok() {
            true => chunk,
            false => self.replace_invalid(&chunk),
        };
        chunk.iter().try_for_each(|byte| self.count(*byte))?;
        Ok(chunk)
    }

    fn replace_invalid(&mut self, chunk: &[u8]) -> Bytes {
        let bytes = [&std::mem::take(&mut self.partial), chunk].concat();
        let mut text = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(part) = chunks.next() {
            text.push_str(part.valid());
            let invalid = part.invalid();
            let is_cut = std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if is_cut && chunks.peek().is_none() {
                self.partial = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text.into()
    }

    fn count(&mut self, byte: u8) -> Result<(), EventTooLongError> {
        let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
        match (byte, self.line) {
            (b'\n', _) if after_cr => {}
            (b'\n' | b'\r', line) => {
                if line == Line::Start {
                    self.event_bytes = 0;
                }
                self.line = Line::Start;
            }
            (_, Line::Comment) => {}
            (b':', Line::Start) => self.line = Line::Comment,
            _ => {
                self.line = Line::Field;
                self.event_bytes += 1;
                if self.event_bytes > EVENT_BYTES_MAX {
                    return Err(EventTooLongError);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(chunks: &[&[u8]]) -> Result<Vec<u8>, EventTooLongError> {
        let mut filter = EventFilter::default();
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&filter.push(Bytes::copy_from_slice(chunk))?);
        }
        Ok(out)
    }

    #[test]
    fn replaces_invalid_bytes() {
        assert_eq!(filter(&[b"a\xffb"]).as_deref(), Ok("a\u{fffd}b".as_bytes()));
        assert_eq!(filter(&[b"\xf0\x9f", b"\x98", b"\x80!"]).as_deref(), Ok("😀!".as_bytes()));
        assert_eq!(filter(&[b"\xf0\x9f", b"!"]).as_deref(), Ok("\u{fffd}!".as_bytes()));
    }

    #[test]
    fn bounds_events_not_comments() {
        let line = |name: &str, len: usize| format!("{name}{}\n", "x".repeat(len)).into_bytes();
        let half = line("data: ", EVENT_BYTES_MAX / 2);
        assert!(filter(&[&half, b"\n", &half, b"\r\n", &half]).is_ok());
        assert_eq!(filter(&[&half, &half]), Err(EventTooLongError));
        // CRLF is one end of a line, not a blank line.
        let crlf = [&half[..half.len() - 1], b"\r\n"].concat();
        assert_eq!(filter(&[&crlf, &crlf]), Err(EventTooLongError));
        let comment = line(": ", EVENT_BYTES_MAX * 2);
        assert!(filter(&[&half, &comment, &comment]).is_ok());
        assert_eq!(filter(&[&line("noise ", EVENT_BYTES_MAX)]), Err(EventTooLongError));
    }

    #[test]
    fn same_result_for_any_chunks() {
        type Input = (Vec<u8>, Vec<u8>);
        bolero::check!().with_iterations(5_000).with_type::<Input>().for_each(|(bytes, cuts)| {
            let whole = filter(&[bytes]).expect("short");
            let (mut chunks, mut rest) = (Vec::new(), &bytes[..]);
            for cut in cuts {
                let (chunk, after) = rest.split_at(usize::from(*cut).min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            chunks.push(rest);
            assert_eq!(filter(&chunks).expect("short"), whole);
            assert!(std::str::from_utf8(&whole).is_ok());
        });
    }
}
