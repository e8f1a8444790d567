//! Cookies of requests.

use axum::http::{HeaderMap, header};

/// Returns the value of a cookie, or `None` if it is missing or sent more than once.
pub fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let sent = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let pairs =
        sent.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut values = pairs.filter(|(sent, _)| *sent == name).map(|(_, value)| value.to_owned());
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cookie_sent_once() {
        let mut sent = HeaderMap::new();
        for text in ["a=1; b=2", "c=3=4"] {
            sent.append(header::COOKIE, text.parse().expect("a header"));
        }
        assert_eq!(cookie(&sent, "b").as_deref(), Some("2"));
        assert_eq!(cookie(&sent, "c").as_deref(), Some("3=4"));
        assert_eq!(cookie(&sent, "d"), None);
        sent.append(header::COOKIE, "a=2".parse().expect("a header"));
        assert_eq!(cookie(&sent, "a"), None);
    }
}
