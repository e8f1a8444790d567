//! `tidegate agents test`: sends a signed question to an agent, and checks the answer as a worker
//! does.
//!
//! Needs no deployment. A second question has a wrong signature, which the agent must reject.
//! Unlike a worker, the command calls any address, including loopback.

use crate::{output, settings};
use anyhow::{Context, ensure};
use reqwest::{Client, Url};
use serde::Serialize;
use serde_json::{Value, json};
use shared::{domain::ConnectionId, runtime::config, secrets::Secret, signature, slack::repair};
use std::time::{Duration, Instant};

/// Maximum bytes of an answer, as in workers.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Maximum characters of a message. Slack truncates longer text.
const MESSAGE_CHARS_MAX: usize = 40_000;
/// Maximum blocks of a message.
const BLOCKS_MAX: usize = 50;
/// Time without an answer after which Slack shows "is thinking…".
const QUIET_MAX: Duration = Duration::from_secs(2);
/// Fields of an answer that Tidegate reads.
const FIELDS: [&str; 4] = ["text", "blocks", "ephemeral", "thread"];

/// Arguments of `tidegate agents test`.
#[derive(Debug, clap::Args)]
pub struct Test {
    /// URL of the agent.
    url: Url,
    /// Secret of the agent, as file:<path>, env:<name>, or - for standard input.
    #[arg(long, value_parser = settings::secret)]
    secret: Secret,
    /// Text of the question.
    #[arg(long, default_value = "Hello! Which questions can you answer?")]
    text: String,
    /// Maximum time until the answer is complete.
    #[arg(long, default_value = "60s", value_parser = config::parse_duration)]
    timeout: Duration,
    /// Print JSON: one line per check, then the answer.
    #[arg(long)]
    json: bool,
}

/// Severity of a check result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Good,
    Warning,
    Problem,
}

#[derive(Debug, Serialize)]
struct Check {
    level: Level,
    check: &'static str,
    summary: String,
}

fn check(level: Level, check: &'static str, summary: impl Into<String>) -> Check {
    Check { level, check, summary: summary.into() }
}

/// Response of an agent.
struct Response {
    status: u16,
    body: Vec<u8>,
    /// Time until the response headers arrived.
    first_byte: Duration,
    /// Time until the response was complete.
    total: Duration,
}

impl Test {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // once in a process
        let http = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(self.timeout)
            .build()
            .context("failed to create the HTTP client")?;
        let mut checks = Vec::new();
        let response = self.ask(&http, &self.secret).await?;
        checks.extend(check_response(&response));
        let answer = match (200..300).contains(&response.status) {
            true => parse_answer(&response.body, &mut checks),
            false => None,
        };
        let forged = Secret::new(format!("forged-{}", ConnectionId::random()?))?;
        let refused = self.ask(&http, &forged).await.map(|response| response.status);
        checks.push(check_refusal(refused.ok()));
        self.print(&checks, answer.as_ref())?;
        let problems = checks.iter().filter(|check| check.level == Level::Problem).count();
        ensure!(problems == 0, "problems: {problems}; the protocol is in worker/docs/agents.md");
        Ok(())
    }

    /// Sends the question as a worker does in mode `reply`.
    async fn ask(&self, http: &Client, secret: &Secret) -> anyhow::Result<Response> {
        let connection = ConnectionId::random()?;
        let id = format!("{connection}:event:Ev0TEST");
        let now = signature::unix_now();
        let body = json!({
            "id": id, "type": "message", "connection": connection, "team": "T0TEST",
            "channel": "D0TEST", "user": "U0TEST", "text": self.text, "ts": format!("{now}.000100"),
            "thread_ts": null, "session": 1,
        });
        let body = body.to_string();
        let signature = signature::standard_webhooks(secret, &id, now, body.as_bytes());
        let signature =
            signature.context("the secret whsec_… is malformed; write whsec_ and base64")?;
        let sent_at = Instant::now();
        let sent = http
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("idempotency-key", &id)
            .header("webhook-id", &id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", signature)
            .body(body)
            .send()
            .await;
        let failed = || format!("failed to call the agent at {}; check that it runs", self.url);
        let mut response = sent.map_err(reqwest::Error::without_url).with_context(failed)?;
        let (status, first_byte) = (response.status().as_u16(), sent_at.elapsed());
        let mut body = Vec::new();
        // Reads up to one chunk beyond the limit, so that the check detects an oversized body.
        while body.len() <= ANSWER_BYTES_MAX {
            let chunk = response.chunk().await.map_err(reqwest::Error::without_url);
            let Some(chunk) = chunk.with_context(failed)? else { break };
            body.extend_from_slice(&chunk);
        }
        Ok(Response { status, body, first_byte, total: sent_at.elapsed() })
    }

    fn print(&self, checks: &[Check], answer: Option<&Value>) -> anyhow::Result<()> {
        if self.json {
            checks.iter().try_for_each(output::print_json)?;
            return output::print_json(&json!({ "answer": answer }));
        }
        for Check { level, check, summary } in checks {
            let (word, color) = match level {
                Level::Good => ("good", "32"),
                Level::Warning => ("warning", "33"),
                Level::Problem => ("problem", "31"),
            };
            let word = output::colorize(color, &format!("{word:<8}"));
            output::print_line(&format!("{word} {check:<10} {}", output::sanitize(summary)))?;
        }
        match answer {
            Some(answer) => Ok(output::print_line(&render(answer))?),
            None => Ok(()),
        }
    }
}

fn check_response(response: &Response) -> Vec<Check> {
    let Response { status, body, first_byte, total } = response;
    let mut checks = vec![match status {
        200..300 => check(Level::Good, "status", format!("{status}")),
        401 | 403 => check(
            Level::Problem,
            "status",
            format!(
                "{status}: the agent rejected the signature; use the same secret on both sides"
            ),
        ),
        300..=399 => {
            check(Level::Problem, "status", format!("{status}: redirects are not followed"))
        }
        _ => {
            let text = String::from_utf8_lossy(body).chars().take(200).collect::<String>();
            check(Level::Problem, "status", format!("{status}: {text}"))
        }
    }];
    let times = format!(
        "first byte after {} ms, end after {} ms",
        first_byte.as_millis(),
        total.as_millis()
    );
    checks.push(match *first_byte > QUIET_MAX {
        true => check(
            Level::Warning,
            "time",
            format!("{times}: Slack shows \"is thinking…\" until then"),
        ),
        false => check(Level::Good, "time", times),
    });
    if body.len() > ANSWER_BYTES_MAX {
        let summary = format!("the answer exceeds {ANSWER_BYTES_MAX} bytes and is discarded");
        checks.push(check(Level::Problem, "size", summary));
    }
    checks
}

/// Returns the fields of the answer that a worker uses. Appends the results of its checks.
fn parse_answer(body: &[u8], checks: &mut Vec<Check>) -> Option<Value> {
    let text = repair(body);
    if text.trim().is_empty() {
        checks.push(check(Level::Good, "answer", "empty: nothing is sent to Slack"));
        return None;
    }
    let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(&text) else {
        let summary = "the answer is not a JSON object; return {\"text\":\"…\"}";
        checks.push(check(Level::Problem, "answer", summary));
        return None;
    };
    let mut answer = serde_json::Map::new();
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
        let is_usable = match name.as_str() {
            "text" => value.is_string(),
            "blocks" => value.is_array(),
            "ephemeral" | "thread" => value.is_boolean(),
            _ => {
                let summary =
                    format!("field {name} is ignored; known fields: {}", FIELDS.join(", "));
                checks.push(check(Level::Warning, "answer", summary));
                continue;
            }
        };
        if is_usable {
            answer.insert(name, value);
        } else {
            let summary = format!("field {name} has a wrong type and is ignored");
            checks.push(check(Level::Problem, "answer", summary));
        }
    }
    let text = answer.get("text").and_then(Value::as_str).unwrap_or_default();
    let blocks = answer.get("blocks").and_then(Value::as_array).map_or(0, Vec::len);
    checks.push(match (text.chars().count(), blocks) {
        (0, 0) => check(Level::Good, "answer", "no text and no blocks: nothing is sent to Slack"),
        (chars, blocks) if chars > MESSAGE_CHARS_MAX || blocks > BLOCKS_MAX => check(
            Level::Warning,
            "answer",
            format!("{chars} characters and {blocks} blocks: the message is shortened for Slack"),
        ),
        (chars, blocks) => {
            check(Level::Good, "answer", format!("{chars} characters, {blocks} blocks"))
        }
    });
    Some(Value::Object(answer))
}

/// Checks the response status of the question with a wrong signature.
fn check_refusal(status: Option<u16>) -> Check {
    match status {
        Some(401 | 403) => check(Level::Good, "signature", "a wrong signature is rejected"),
        Some(200..300) => check(
            Level::Warning,
            "signature",
            "a question with a wrong signature was answered: anyone can call this agent; \
             verify webhook-signature",
        ),
        Some(status) => check(
            Level::Warning,
            "signature",
            format!("a wrong signature got status {status}; return 401"),
        ),
        None => check(Level::Warning, "signature", "a wrong signature got no response; return 401"),
    }
}

/// Renders the answer as text, as Slack would show it.
fn render(answer: &Value) -> String {
    let text = answer["text"].as_str().unwrap_or_default();
    let mut lines: Vec<String> = Vec::new();
    match answer["blocks"].as_array().filter(|blocks| !blocks.is_empty()) {
        // Slack shows blocks in place of the text.
        Some(blocks) => lines.extend(blocks.iter().map(render_block)),
        None => lines.extend(text.lines().map(output::sanitize)),
    }
    let visibility = match (answer["ephemeral"] == true, answer["thread"].as_bool()) {
        (true, _) => "visible only to the author",
        (false, Some(true)) => "in a thread",
        (false, Some(false)) => "outside the thread",
        (false, None) => "in the conversation",
    };
    let shown = lines.iter().flat_map(|line| line.lines()).map(|line| format!("  | {line}"));
    format!("Slack would show, {visibility}:\n{}", shown.collect::<Vec<_>>().join("\n"))
}

/// Returns the text of a block, or its type in brackets if it has none.
fn render_block(block: &Value) -> String {
    let kind = block["type"].as_str().unwrap_or("unknown");
    let text = block.pointer("/text/text").and_then(Value::as_str);
    match (kind, text) {
        ("divider", _) => "----".into(),
        (_, Some(text)) => text.lines().map(output::sanitize).collect::<Vec<_>>().join("\n"),
        (kind, None) => format!("[{}]", output::sanitize(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(body: &str) -> (Vec<(Level, String)>, Option<Value>) {
        let mut checks = Vec::new();
        let answer = parse_answer(body.as_bytes(), &mut checks);
        (checks.into_iter().map(|check| (check.level, check.summary)).collect(), answer)
    }

    #[test]
    fn parses_answer_as_worker_does() {
        let (checks, answer) = parsed(r#"{"text":"hi","channel":"C9","thread":null}"#);
        assert_eq!(answer, Some(json!({ "text": "hi" })));
        assert_eq!(checks[0].0, Level::Warning);
        assert_eq!(checks[1], (Level::Good, "2 characters, 0 blocks".into()));
        for unusable in ["hi", "[]", r#"{"text":1}"#, r#"{"blocks":"x"}"#] {
            assert_eq!(parsed(unusable).0[0].0, Level::Problem, "{unusable}");
        }
        assert_eq!(parsed("").0[0].0, Level::Good);
    }

    #[test]
    fn renders_what_slack_shows() {
        let answer = json!({
            "text": "unseen", "thread": true,
            "blocks": [
                { "type": "section", "text": { "type": "mrkdwn", "text": "*two*\nlines" } },
                { "type": "divider" },
                { "type": "actions" },
            ],
        });
        insta::assert_snapshot!(render(&answer), @r"
        Slack would show, in a thread:
          | *two*
          | lines
          | ----
          | [actions]
        ");
        insta::assert_snapshot!(render(&json!({ "text": "hi\u{7}", "ephemeral": true })), @r"
        Slack would show, visible only to the author:
          | hi�
        ");
    }

    #[test]
    fn checks_status() {
        let level = |status| {
            let (first_byte, total) = (Duration::ZERO, Duration::ZERO);
            check_response(&Response { status, body: Vec::new(), first_byte, total })[0].level
        };
        assert_eq!([200, 204, 301, 401, 500].map(level)[..2], [Level::Good; 2]);
        assert_eq!([301, 401, 404, 500].map(level), [Level::Problem; 4]);
        assert_eq!(check_refusal(Some(401)).level, Level::Good);
        assert_eq!(check_refusal(Some(200)).level, Level::Warning);
    }
}
