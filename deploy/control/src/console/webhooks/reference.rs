//! References to webhooks: Slack permalinks, ids, or channel and ts.

use shared::store::WebhookQuery;

/// Digits of the fraction of a `ts`. A permalink has them without the point.
const FRACTION_DIGITS: usize = 6;

/// Returns the query for a reference.
pub fn parse(text: &str) -> WebhookQuery {
    let text = text.trim();
    match message_of_permalink(text) {
        Some((channel, ts)) => WebhookQuery::Message { channel, ts },
        None => WebhookQuery::from(text),
    }
}

/// Returns channel and ts of a link such as
/// `https://acme.slack.com/archives/C0123/p1700000000000100`.
fn message_of_permalink(text: &str) -> Option<(String, String)> {
    let (_, path) = text.split_once("/archives/")?;
    let path = path.split(['?', '#']).next()?;
    let (channel, message) = path.split_once('/')?;
    let digits = message.trim_end_matches('/').strip_prefix('p')?;
    if channel.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let point = digits.len().checked_sub(FRACTION_DIGITS).filter(|point| *point > 0)?;
    Some((channel.to_owned(), format!("{}.{}", &digits[..point], &digits[point..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_permalinks() {
        let message =
            WebhookQuery::Message { channel: "C01".into(), ts: "1700000000.000100".into() };
        for link in [
            "https://acme.slack.com/archives/C01/p1700000000000100",
            " https://acme.slack.com/archives/C01/p1700000000000100?thread_ts=1.2&cid=C01 ",
            "C01/1700000000.000100",
        ] {
            assert_eq!(parse(link), message, "{link}");
        }
        assert_eq!(parse("Ev01"), WebhookQuery::Reference("Ev01".into()));
        for wrong in ["/archives/C01/p1", "/archives/C01/pé000000", "/archives/C01"] {
            assert!(message_of_permalink(wrong).is_none(), "{wrong}");
        }
    }
}
