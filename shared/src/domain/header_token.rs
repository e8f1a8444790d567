//! Text that is safe as the value of a header.

/// Text that is safe in a header: 1 to 200 printable ASCII characters without spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderToken(String);

impl HeaderToken {
    /// Returns the text as a header token, or `None` if it is not safe.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        let safe = (1..=200).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        safe.then_some(Self(text))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
