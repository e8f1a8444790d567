//! Events of agents that answer with an event stream. Unknown events and fields, and fields with a
//! wrong type, are ignored.

use super::approval_request::{AgentAsk, parse_ask};
use serde::Serialize;
use serde_json::Value;
use shared::slack::repair;

/// Event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    /// More text of the answer, in Markdown.
    Text(String),
    /// Step of the work, new or changed.
    Task(TaskUpdate),
    /// Block Kit blocks.
    Blocks(Vec<Value>),
    /// Question to people. It ends the answer.
    Ask(Box<AgentAsk>),
    /// Current activity of the agent, for the status of the thread.
    Status(String),
    /// Title of the session.
    Title(String),
    /// Questions that the person may ask next.
    Prompts(Vec<Prompt>),
    /// The agent cannot resume after the last event that Tidegate has: the answer starts over.
    Reset,
    /// The answer is complete.
    Done,
    Failed(AgentFailure),
    /// Event that is unknown to this release, or without content.
    Ignored,
}

/// Step of an agent's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskUpdate {
    pub id: String,
    pub title: String,
    pub status: TaskStatus,
    /// Text to append to the details of the step.
    pub details: String,
}

/// Question that the person may ask next. Its JSON is Slack's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prompt {
    pub title: String,
    /// Text of the question.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // Slack's names
pub enum TaskStatus {
    Pending,
    InProgress,
    Complete,
    Error,
}

/// End of a stream by an error of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFailure {
    /// Code, for operators.
    pub code: String,
    /// True if another attempt may succeed.
    pub retry: bool,
    /// Text for the person.
    pub say: Option<String>,
}

/// Maximum characters of a code.
const CODE_CHARS: usize = 80;
/// Maximum characters of the text for the person.
const SAY_CHARS: usize = 500;
/// Slack's limit for the title of a session, in characters.
const TITLE_CHARS: usize = 200;
/// Slack's limit of suggested prompts.
const PROMPTS_MAX: usize = 4;
/// Maximum characters of a prompt's title and of its text.
const PROMPT_CHARS: (usize, usize) = (100, 2_000);

impl TaskStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InProgress => "in_progress",
            Self::Complete => "complete",
            Self::Error => "error",
        }
    }

    fn parse(word: &str) -> Self {
        match word {
            "pending" => Self::Pending,
            "complete" => Self::Complete,
            "error" => Self::Error,
            _ => Self::InProgress,
        }
    }
}

/// Parses an event by its name and data.
pub(super) fn parse_event(name: &str, data: &str) -> AgentEvent {
    let data: Value = serde_json::from_str(&repair(data.as_bytes())).unwrap_or_default();
    let text = |name: &str| data[name].as_str().unwrap_or_default();
    let short = |name: &str, max: usize| -> String {
        text(name).chars().filter(|c| !c.is_control()).take(max).collect()
    };
    match name {
        "text" if !text("delta").is_empty() => AgentEvent::Text(text("delta").to_owned()),
        "task" if !text("id").is_empty() => AgentEvent::Task(TaskUpdate {
            id: text("id").to_owned(),
            title: text("title").to_owned(),
            status: TaskStatus::parse(text("status")),
            details: text("delta").to_owned(),
        }),
        "blocks" => match data["blocks"].as_array() {
            Some(blocks) if !blocks.is_empty() => AgentEvent::Blocks(blocks.clone()),
            _ => AgentEvent::Ignored,
        },
        "status" => AgentEvent::Status(short("text", CODE_CHARS)),
        "ask" => parse_ask(&data).map_or(AgentEvent::Ignored, |ask| AgentEvent::Ask(Box::new(ask))),
        "title" => read_title(text("title")).map_or(AgentEvent::Ignored, AgentEvent::Title),
        "prompts" => {
            read_prompts(&data["prompts"]).map_or(AgentEvent::Ignored, AgentEvent::Prompts)
        }
        "reset" => AgentEvent::Reset,
        "done" => AgentEvent::Done,
        "error" => AgentEvent::Failed(AgentFailure {
            code: short("code", CODE_CHARS),
            retry: data["retry"].as_bool().unwrap_or_default(),
            say: Some(short("say", SAY_CHARS)).filter(|say| !say.is_empty()),
        }),
        _ => AgentEvent::Ignored,
    }
}

/// Normalizes the title of a session. Returns `None` if it is empty.
pub(super) fn read_title(title: &str) -> Option<String> {
    let title: String = title.chars().filter(|c| !c.is_control()).take(TITLE_CHARS).collect();
    Some(title.trim().to_owned()).filter(|title| !title.is_empty())
}

/// Reads suggested prompts. Returns `None` if the value is not a list.
pub(super) fn read_prompts(prompts: &Value) -> Option<Vec<Prompt>> {
    let prompt = |prompt: &Value| {
        let text = |name: &str, max: usize| -> Option<String> {
            let text: String = prompt[name].as_str()?.chars().take(max).collect();
            Some(text).filter(|text| !text.trim().is_empty())
        };
        let (title, message) = (text("title", PROMPT_CHARS.0), text("message", PROMPT_CHARS.1));
        title.zip(message).map(|(title, message)| Prompt { title, message })
    };
    Some(prompts.as_array()?.iter().filter_map(prompt).take(PROMPTS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_event() {
        let task = TaskUpdate {
            id: "t".into(),
            title: "Search".into(),
            status: TaskStatus::Complete,
            details: "3 pages".into(),
        };
        let prompt = Prompt { title: "Why?".into(), message: "Why so?".into() };
        let failure = AgentFailure { code: "busy".into(), retry: true, say: None };
        for (name, data, event) in [
            ("text", r#"{"delta":"hi"}"#, AgentEvent::Text("hi".into())),
            ("text", r#"{"delta":"cut \ud83d"}"#, AgentEvent::Text("cut \u{fffd}".into())),
            ("text", r#"{"delta":""}"#, AgentEvent::Ignored),
            (
                "task",
                r#"{"id":"t","title":"Search","status":"complete","delta":"3 pages","new":1}"#,
                AgentEvent::Task(task),
            ),
            ("task", r#"{"title":"Search"}"#, AgentEvent::Ignored),
            (
                "blocks",
                r#"{"blocks":[{}]}"#,
                AgentEvent::Blocks(vec![Value::Object(<_>::default())]),
            ),
            ("blocks", r#"{"blocks":"x"}"#, AgentEvent::Ignored),
            ("status", r#"{"text":"Searching"}"#, AgentEvent::Status("Searching".into())),
            ("ask", r#"{"id":"a"}"#, AgentEvent::Ignored),
            ("title", r#"{"title":" A\nB "}"#, AgentEvent::Title("AB".into())),
            ("title", r#"{"title":7}"#, AgentEvent::Ignored),
            (
                "prompts",
                r#"{"prompts":[{"title":"Why?","message":"Why so?"},{"title":"x"},7]}"#,
                AgentEvent::Prompts(vec![prompt]),
            ),
            ("prompts", r#"{"prompts":{}}"#, AgentEvent::Ignored),
            ("reset", "", AgentEvent::Reset),
            ("done", "not JSON", AgentEvent::Done),
            ("error", r#"{"code":"busy","retry":true,"say":7}"#, AgentEvent::Failed(failure)),
            ("weather", r#"{"delta":"sunny"}"#, AgentEvent::Ignored),
            ("", r#"{"delta":"x"}"#, AgentEvent::Ignored),
        ] {
            assert_eq!(parse_event(name, data), event, "{name} {data}");
        }
    }
}
