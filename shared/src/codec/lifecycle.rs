//! Parsers for events about an installation: fields that only these events have.
//!
//! The parsers return nothing for a body that differs from docs.slack.dev/reference/events.

use super::loose::{Flag, Id, Object, Text, Texts};
use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Body<T> {
    #[serde(bound = "T: Deserialize<'de>")]
    event: Object<T>,
}

fn read<'a, T: Deserialize<'a> + Default>(body: &'a [u8]) -> Option<T> {
    serde_json::from_slice::<Body<T>>(body).ok()?.event.0
}

/// Returns the bot user ids whose tokens a `tokens_revoked` event revokes. Slack lists user ids
/// there, not tokens.
pub fn revoked_bots(body: &[u8]) -> Vec<String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Tokens {
        bot: Texts,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Revoked {
        tokens: Object<Tokens>,
    }
    let tokens = read::<Revoked>(body).and_then(|revoked| revoked.tokens.0);
    tokens.map(|tokens| tokens.bot.0).unwrap_or_default()
}

/// Returns the old and the new channel id of a `channel_id_changed` event.
pub fn renamed_channel(body: &[u8]) -> Option<(String, String)> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Renamed<'a> {
        #[serde(borrow)]
        old_channel_id: Text<'a>,
        #[serde(borrow)]
        new_channel_id: Text<'a>,
    }
    let renamed: Renamed<'_> = read(body)?;
    Some((renamed.old_channel_id.get()?.to_owned(), renamed.new_channel_id.get()?.to_owned()))
}

/// Returns the user id of a `team_join` event, unless the user is a bot or deleted.
pub fn joined_person(body: &[u8]) -> Option<String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct User<'a> {
        #[serde(borrow)]
        id: Id<'a>,
        is_bot: Flag,
        deleted: Flag,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Joined<'a> {
        #[serde(borrow)]
        user: Object<User<'a>>,
    }
    let joined: Joined<'_> = read(body)?;
    let user = joined.user.0.filter(|user| !user.is_bot.0 && !user.deleted.0)?;
    user.id.get().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_known_shapes_of_events() {
        let body =
            br#"{"event":{"type":"tokens_revoked","tokens":{"oauth":["U1"],"bot":["UBOT",7]}}}"#;
        assert_eq!(revoked_bots(body), ["UBOT"]);
        assert_eq!(revoked_bots(br#"{"event":{"tokens":{"oauth":["U1"]}}}"#), [""; 0]);
        let body = br#"{"event":{"old_channel_id":"G1","new_channel_id":"C1"}}"#;
        assert_eq!(renamed_channel(body), Some(("G1".into(), "C1".into())));
        assert_eq!(renamed_channel(br#"{"event":{"old_channel_id":"G1"}}"#), None);
        let join =
            |user: &str| joined_person(format!(r#"{{"event":{{"user":{user}}}}}"#).as_bytes());
        assert_eq!(join(r#"{"id":"U1","is_bot":false}"#).as_deref(), Some("U1"));
        for user in
            [r#"{"id":"U1","is_bot":true}"#, r#"{"id":"U1","deleted":true}"#, "\"U1\"", "null"]
        {
            assert_eq!(join(user), None, "{user}");
        }
    }
}
