//! JSON answers of agents.

use super::{
    approval_request::{AgentAsk, parse_ask},
    events::{Prompt, read_prompts, read_title},
};
use serde_json::{Value, json};
use shared::slack::repair;

/// Reply of an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentReply {
    /// Message with `text` and `blocks`; null if there is only a question to people.
    pub message: Value,
    /// Markdown that replaces the text.
    pub markdown: Option<String>,
    /// True if only the author of the message sees the reply.
    pub ephemeral: bool,
    /// True for a reply in a thread; by default that depends on the conversation.
    pub thread: Option<bool>,
    /// Question to people.
    pub ask: Option<AgentAsk>,
    pub session: SessionChange,
}

/// Change of the session in Slack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionChange {
    pub title: Option<String>,
    pub prompts: Option<Vec<Prompt>>,
}

/// Parses a reply. Fields that an agent may not set or that have a wrong type are dropped; null
/// means absent. Fails if the answer is not a JSON object, or has only content of a wrong type.
pub(super) fn parse_reply(answer: &[u8]) -> Result<Option<AgentReply>, &'static str> {
    let answer = repair(answer);
    if answer.trim().is_empty() {
        return Ok(None);
    }
    let answer: Value =
        serde_json::from_str(&answer).map_err(|_| "its answer is not {\"text\":…}")?;
    let fields = answer.as_object().ok_or("its answer is not {\"text\":…}")?;
    let field = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let string = |name: &str| field(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let (text, markdown) = (string("text").unwrap_or_default(), string("markdown"));
    let blocks = field("blocks").and_then(Value::as_array).filter(|blocks| !blocks.is_empty());
    let ask = field("ask").and_then(parse_ask);
    let message = match (text.is_empty(), blocks) {
        (true, None) if markdown.is_some() => json!({ "text": "" }),
        (true, None) if ask.is_some() => Value::Null,
        (true, None) => {
            let has_wrong_type = field("text").is_some_and(|text| !text.is_string())
                || field("markdown").is_some_and(|text| !text.is_string())
                || field("blocks").is_some_and(|blocks| !blocks.is_array());
            return match has_wrong_type {
                true => {
                    Err("its answer has text that is not a string or blocks that are not a list")
                }
                false => Ok(None),
            };
        }
        (false, None) => json!({ "text": text }),
        (_, Some(blocks)) => json!({ "text": text, "blocks": blocks }),
    };
    let flag = |name: &str| field(name).and_then(Value::as_bool);
    let ephemeral = flag("ephemeral").unwrap_or_default();
    let markdown = markdown.map(str::to_owned);
    let (title, prompts) =
        (answer["title"].as_str().and_then(read_title), read_prompts(&answer["prompts"]));
    let session = SessionChange { title, prompts };
    Ok(Some(AgentReply { message, markdown, ephemeral, thread: flag("thread"), ask, session }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_only_allowed_fields() {
        let reply = parse_reply(br#"{"text":"hi","ephemeral":true,"channel":"C9","as_user":true}"#);
        let (message, markdown) = (json!({ "text": "hi" }), None);
        let (ask, session) = (None, SessionChange::default());
        let answer = AgentReply { message, markdown, ephemeral: true, thread: None, ask, session };
        assert_eq!(reply, Ok(Some(answer)));
        let asks = parse_reply(br#"{"ask":{"prompt":"Deploy?"}}"#).expect("an answer");
        assert!(asks.is_some_and(|reply| reply.message.is_null() && reply.ask.is_some()));
        let reply = parse_reply(br##"{"markdown":"# hi","blocks":null}"##).expect("an answer");
        assert_eq!(reply.and_then(|reply| reply.markdown).as_deref(), Some("# hi"));
        for nothing in [&b""[..], b"\n", b"{}", br#"{"text":""}"#] {
            assert_eq!(parse_reply(nothing), Ok(None));
        }
        assert!(parse_reply(b"hi").is_err() && parse_reply(br#"{"blocks":"x"}"#).is_err());
        assert!(parse_reply(br#"{"markdown":["x"]}"#).is_err());
        let null = parse_reply(br#"{"text":"hi","blocks":null,"thread":null}"#).expect("an answer");
        assert_eq!(null.map(|answer| answer.message), Some(json!({"text": "hi"})));
        for odd in [
            &b"\xef\xbb\xbf{\"text\":\"cut \\ud83d\"}"[..],
            b"{\"text\":\"old\",\"text\":\"cut \xff\"}",
            br#"{"text":"cut \ufffd","blocks":"x","thread":"yes","ephemeral":1}"#,
            br#"{"cost":1e999,"blocks":-1E400,"thread":1e999,"text":"cut \ufffd"}"#,
            format!(
                "{{\"trace\":{}1{},\"text\":\"cut \u{fffd}\"}}",
                "[".repeat(500),
                "]".repeat(500)
            )
            .as_bytes(),
        ] {
            let answer = parse_reply(odd).expect("an answer").expect("a message");
            assert_eq!(answer.message, json!({ "text": "cut \u{fffd}" }));
            assert_eq!((answer.thread, answer.ephemeral), (None, false));
        }
    }
}
