//! Media types of webhooks.

/// Media type of a webhook's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// `application/json`: events.
    Json,
    /// `application/x-www-form-urlencoded`: commands and interactions.
    Form,
}

impl MediaType {
    /// Parses a Content-Type header. Parameters such as `charset` are ignored.
    pub fn from_content_type(header: &str) -> Option<Self> {
        let essence = header.split(';').next().unwrap_or_default().trim();
        [MediaType::Json, MediaType::Form]
            .into_iter()
            .find(|m| essence.eq_ignore_ascii_case(m.as_str()))
    }

    /// Returns the header value.
    pub fn as_str(self) -> &'static str {
        match self {
            MediaType::Json => "application/json",
            MediaType::Form => "application/x-www-form-urlencoded",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignores_media_type_parameters() {
        let of = MediaType::from_content_type;
        assert_eq!(of("application/json; charset=utf-8"), Some(MediaType::Json));
        assert_eq!(of("Application/X-WWW-Form-Urlencoded"), Some(MediaType::Form));
        assert_eq!(of("application/jsonp"), None);
        assert_eq!(of(""), None);
    }
}
