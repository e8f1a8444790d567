//! Questions of agents to people.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::{
    domain::UserId,
    store::{ApprovalContent, ApprovalOption},
};
use std::time::Duration;

/// Maximum characters of a prompt. Slack's limit of a section is 3,000.
const PROMPT_CHARS: usize = 2_900;
/// Slack's limit of a button's text, in characters.
const LABEL_CHARS: usize = 75;
/// Maximum characters of an id.
const ID_CHARS: usize = 100;
/// Maximum number of options.
const OPTIONS_MAX: usize = 5;
/// Maximum number of people who may decide.
const ALLOWED_MAX: usize = 50;
/// Time to decide if the agent sets none.
const EXPIRES_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Bounds of the time to decide.
const EXPIRES_BOUNDS: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(14 * 24 * 3600));

/// Question of an agent to people, which ends its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentAsk {
    /// Id that the agent gave the question.
    pub id: String,
    pub content: ApprovalContent,
    /// People who may decide. Empty: the author of the agent's question.
    pub allowed: Vec<String>,
    pub expires_in: Duration,
}

/// Parses a question. Returns `None` without a prompt. Fields of a wrong type are ignored; values
/// beyond a limit are cut.
pub(super) fn parse_ask(ask: &Value) -> Option<AgentAsk> {
    let prompt: String = ask["prompt"].as_str()?.trim().chars().take(PROMPT_CHARS).collect();
    if prompt.is_empty() {
        return None;
    }
    let mut options: Vec<ApprovalOption> = Vec::new();
    for option in ask["options"].as_array().into_iter().flatten().filter_map(parse_option) {
        if options.len() < OPTIONS_MAX && !options.iter().any(|known| known.id == option.id) {
            options.push(option);
        }
    }
    if options.is_empty() {
        options = [("approve", "Approve", "primary"), ("deny", "Deny", "danger")]
            .map(|(id, label, style)| ApprovalOption {
                id: id.into(),
                label: label.into(),
                style: style.into(),
            })
            .to_vec();
    }
    let people = ask["allowed"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let people = people.filter(|user| user.parse::<UserId>().is_ok()).map(str::to_owned);
    let (least, most) = EXPIRES_BOUNDS;
    let expires_in = ask["expires"].as_f64().and_then(|s| Duration::try_from_secs_f64(s).ok());
    Some(AgentAsk {
        id: ask["id"].as_str().filter(|id| is_id(id)).unwrap_or("ask").to_owned(),
        content: ApprovalContent { prompt, options },
        allowed: people.take(ALLOWED_MAX).collect(),
        expires_in: expires_in.unwrap_or(EXPIRES_DEFAULT).clamp(least, most),
    })
}

/// Parses `{"id":…,"label":…,"style":…}`.
fn parse_option(option: &Value) -> Option<ApprovalOption> {
    let id = option["id"].as_str().filter(|id| is_id(id))?;
    let label = option["label"].as_str().map(str::trim).filter(|label| !label.is_empty());
    let style = option["style"].as_str().filter(|style| ["primary", "danger"].contains(style));
    Some(ApprovalOption {
        id: id.to_owned(),
        label: label.unwrap_or(id).chars().take(LABEL_CHARS).collect(),
        style: style.unwrap_or_default().to_owned(),
    })
}

fn is_id(id: &str) -> bool {
    (1..=ID_CHARS).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_question_to_people() {
        let ask = parse_ask(&json!({
            "id": "deploy-7", "prompt": "Deploy?", "allowed": ["U1", 7, "not an id"], "new": 1,
            "options": [{ "id": "yes", "label": "Yes", "style": "primary" }, { "id": "no" }, "x",
                        { "id": "yes" }],
            "expires": 600,
        }));
        let ask = ask.expect("a question");
        let option = |id: &str, label: &str, style: &str| ApprovalOption {
            id: id.into(),
            label: label.into(),
            style: style.into(),
        };
        assert_eq!((&*ask.id, ask.expires_in), ("deploy-7", Duration::from_secs(600)));
        let options = [option("yes", "Yes", "primary"), option("no", "no", "")];
        assert_eq!(
            (&ask.content.options[..], &ask.allowed[..]),
            (&options[..], &["U1".into()][..])
        );
        let odd = json!({
            "prompt": "x".repeat(5_000), "expires": 1e300, "allowed": "U1", "id": "a b",
            "options": [{ "id": "é" }],
        });
        let odd = parse_ask(&odd).expect("a question");
        assert_eq!((odd.content.prompt.len(), odd.expires_in), (PROMPT_CHARS, EXPIRES_DEFAULT));
        assert_eq!((&*odd.id, odd.content.options.len(), odd.allowed.len()), ("ask", 2, 0));
        for nothing in [json!({}), json!("x"), json!({ "prompt": " " }), json!({ "prompt": 1 })] {
            assert_eq!(parse_ask(&nothing), None);
        }
    }
}
