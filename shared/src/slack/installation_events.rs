//! Parsers for events about an installation: fields that only these events have.
//!
//! The parsers return no value for a body that differs from docs.slack.dev/reference/events.

use crate::slack::{
    lenient::{Flag, Id, Object, Text, Texts, fields},
    repair,
};

fields! {
    struct Body<'a> {
        event: Object<Event<'a>>,
    }
    struct Event<'a> {
        tokens: Object<Tokens>,
        old_channel_id: Text<'a>,
        new_channel_id: Text<'a>,
        user: Object<User<'a>>,
    }
    struct Tokens {
        bot: Texts,
    }
    struct User<'a> {
        id: Id<'a>,
        is_bot: Flag,
        deleted: Flag,
    }
}

/// Reads the inner event of a body and returns what `select` finds in it.
fn read<T>(body: &[u8], select: impl FnOnce(Event<'_>) -> Option<T>) -> Option<T> {
    let body = repair(body);
    let Object(outer): Object<Body<'_>> = serde_json::from_str(&body).ok()?;
    select(outer?.event.0?)
}

/// Returns the bot user ids whose tokens a `tokens_revoked` event revokes. Slack lists user ids
/// there, not tokens.
pub fn parse_revoked_bots(body: &[u8]) -> Vec<String> {
    read(body, |event| Some(event.tokens.0?.bot.0)).unwrap_or_default()
}

/// Returns the old and the new channel id of a `channel_id_changed` event.
pub fn parse_renamed_channel(body: &[u8]) -> Option<(String, String)> {
    read(body, |event| {
        let (old, new) = (event.old_channel_id.0?, event.new_channel_id.0?);
        Some((old.into_owned(), new.into_owned()))
    })
}

/// Returns the user id of a `team_join` event, unless the user is a bot or deleted.
pub fn parse_joined_user(body: &[u8]) -> Option<String> {
    read(body, |event| {
        let user = event.user.0.filter(|user| !user.is_bot.0 && !user.deleted.0)?;
        user.id.0.map(|id| id.into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_known_event_shapes() {
        let body =
            br#"{"event":{"type":"tokens_revoked","tokens":{"oauth":["U1"],"bot":["UBOT",7]}}}"#;
        assert_eq!(parse_revoked_bots(body), ["UBOT"]);
        assert_eq!(parse_revoked_bots(br#"{"event":{"tokens":{"oauth":["U1"]}}}"#), [""; 0]);
        let body = br#"{"event":{"old_channel_id":"G1","new_channel_id":"C1"}}"#;
        assert_eq!(parse_renamed_channel(body), Some(("G1".into(), "C1".into())));
        assert_eq!(parse_renamed_channel(br#"{"event":{"old_channel_id":"G1"}}"#), None);
        let join =
            |user: &str| parse_joined_user(format!(r#"{{"event":{{"user":{user}}}}}"#).as_bytes());
        assert_eq!(join(r#"{"id":"U1","is_bot":false}"#).as_deref(), Some("U1"));
        for user in
            [r#"{"id":"U1","is_bot":true}"#, r#"{"id":"U1","deleted":true}"#, "\"U1\"", "null"]
        {
            assert_eq!(join(user), None, "{user}");
        }
        let odd = r#"{"id":"U0","id":"U1","name":"cut \ud83d"}"#;
        assert_eq!(join(odd).as_deref(), Some("U1"), "a malformed field affects no other");
    }
}
