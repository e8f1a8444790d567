//! Load of messages in conversations, sent as Slack sends them: a refused message is resent until
//! it is accepted.
//!
//! The result is a [`History`] for the checker. In each conversation one message is accepted before
//! the next is sent, so the order of acceptance is known. Conversations run concurrently. Commands
//! are sent once; each user gets an answer.

use crate::{
    checker::{Acceptance, Command, History, MessageId},
    eventually::try_eventually,
    slack::{Answer, signing::Signing, webhook::Webhook},
    test_env::{App, Ingest, TestEnv},
};
use shared::stream::DedupKey;
use sqlx::Row;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// Time between two messages of a conversation, or two commands of a user.
const PACE: Duration = Duration::from_millis(150);
/// Time before a refused message is resent. Slack waits a minute.
const RESEND: Duration = Duration::from_millis(200);
/// Maximum number of attempts of a message, for about a minute.
const ATTEMPTS_MAX: usize = 300;

/// Parameters of a load.
pub struct Load<'a> {
    env: &'a TestEnv,
    app: &'a App,
    conversations: u32,
    users: u32,
    pace: Duration,
    text_prefix: String,
    balanced: bool,
    signing: Signing,
    turn: AtomicUsize,
}

/// Messages sent and their results.
#[derive(Debug, Default)]
pub struct Sent {
    messages: BTreeMap<MessageId, (String, Acceptance)>,
    commands: Vec<(Command, String)>,
    tally: Tally,
    token: String,
    connection: String,
}

#[derive(Debug, Default)]
struct Tally {
    attempts: usize,
    rejected: usize,
    slowest: Duration,
}

/// Returns the direct message channel of a conversation.
pub fn channel(conversation: u32) -> String {
    format!("D{conversation:04}")
}

/// Sends messages in conversations until `over` is set. The last message of each conversation is
/// still resent until it is accepted.
pub async fn run(env: &TestEnv, app: &App, conversations: u32, over: &AtomicBool) -> Sent {
    Load::new(env, app, conversations).run(over).await
}

impl<'a> Load<'a> {
    /// Returns the load of a number of conversations.
    pub fn new(env: &'a TestEnv, app: &'a App, conversations: u32) -> Self {
        let (pace, turn) = (PACE, AtomicUsize::new(0));
        Self {
            env,
            app,
            conversations,
            users: 0,
            pace,
            text_prefix: String::new(),
            balanced: false,
            signing: Signing::default(),
            turn,
        }
    }

    /// Adds users who send commands.
    pub fn commands(self, users: u32) -> Self {
        Self { users, ..self }
    }

    /// Sets the time between two messages of a conversation.
    pub fn pace(self, pace: Duration) -> Self {
        Self { pace, ..self }
    }

    /// Sets words at the start of every message, which control the sample agent.
    pub fn with_text(self, words: &str) -> Self {
        Self { text_prefix: format!("{words} "), ..self }
    }

    /// Sends only to ingests that are ready, as a load balancer does.
    pub fn ready_only(self) -> Self {
        Self { balanced: true, ..self }
    }

    /// Signs with the given secrets.
    pub fn signing(self, signing: Signing) -> Self {
        Self { signing, ..self }
    }

    /// Sends messages and commands until `over` is set. The last message of each conversation is
    /// still resent until it is accepted.
    pub async fn run(&self, over: &AtomicBool) -> Sent {
        let conversations = futures_util::future::join_all(
            (0..self.conversations).map(|conversation| self.send_conversation(conversation, over)),
        );
        let people = futures_util::future::join_all((0..self.users).map(|n| self.command(n, over)));
        let (conversations, people) = tokio::join!(conversations, people);
        let mut sent = Sent {
            token: self.app.token.clone(),
            connection: self.app.connection.to_string(),
            ..Sent::default()
        };
        for (messages, tally) in conversations {
            sent.messages.extend(messages);
            sent.tally.add(&tally);
        }
        sent.commands = people.into_iter().flatten().collect();
        sent
    }

    async fn send_conversation(
        &self,
        conversation: u32,
        over: &AtomicBool,
    ) -> (Vec<(MessageId, (String, Acceptance))>, Tally) {
        let channel = channel(conversation);
        let (mut sent, mut tally) = (Vec::new(), Tally::default());
        let mut pace = tokio::time::interval(self.pace);
        while !over.load(Ordering::Relaxed) {
            pace.tick().await;
            let place = sent.len() as u32;
            let text = format!("{}{conversation}/{place}", self.text_prefix);
            let webhook = Webhook::message(&self.env.slack, self.app, &channel, "U1", &text);
            let mut acceptance = Acceptance::Refused;
            for _ in 0..ATTEMPTS_MAX {
                let began = Instant::now();
                let answer = self.send(&webhook).await;
                tally.attempts += 1;
                tally.slowest = tally.slowest.max(began.elapsed());
                match answer {
                    Some(answer) if answer.status == 200 => {
                        acceptance = Acceptance::Accepted;
                        break;
                    }
                    Some(answer) if (400..500).contains(&answer.status) => {}
                    _ => acceptance = Acceptance::Unknown,
                }
                tally.rejected += 1;
                tokio::time::sleep(RESEND).await;
            }
            sent.push(((conversation, place), (webhook.dedup_key.to_string(), acceptance)));
        }
        (sent, tally)
    }

    async fn command(&self, user: u32, over: &AtomicBool) -> Vec<(Command, String)> {
        let (user, mut sent) = (format!("U{user:04}"), Vec::new());
        let mut pace = tokio::time::interval(self.pace);
        while !over.load(Ordering::Relaxed) {
            pace.tick().await;
            let webhook =
                Webhook::command(&self.env.slack, self.app, "C0001", &user, "/lobu", "help");
            let command = match self.send(&webhook).await {
                None => Command::Unknown,
                Some(answer) if answer.status == 200 && answer.body.is_empty() => {
                    Command::Accepted { answered: false } // not yet
                }
                Some(answer) if answer.status == 200 && answer.body.contains("try again") => {
                    Command::Notified
                }
                Some(answer) => Command::Failed(format!("{} {}", answer.status, answer.body)),
            };
            sent.push((command, webhook.response_url));
        }
        sent
    }

    /// Sends to one ingest, or to the next if the connection is refused, as a load balancer does.
    async fn send(&self, webhook: &Webhook) -> Option<Answer> {
        let ingests = &self.env.ingests;
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for n in first..first + ingests.len() {
            let ingest = &ingests[n % ingests.len()];
            if self.balanced && !is_ready(ingest).await {
                continue;
            }
            let url = ingest.url(self.app);
            let secret = self.signing.next(&self.app.secret);
            match self.env.slack.send(&url, &secret, webhook).await {
                Ok(answer) => return Some(answer),
                Err(error) => {
                    let error = error.downcast_ref::<reqwest::Error>();
                    if !error.is_some_and(reqwest::Error::is_connect) {
                        return None;
                    }
                }
            }
        }
        None
    }
}

async fn is_ready(ingest: &Ingest) -> bool {
    let ready = reqwest::get(ingest.admin("/readyz")).await;
    ready.is_ok_and(|answer| answer.status().is_success())
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.attempts += other.attempts;
        self.rejected += other.rejected;
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Returns the message id at the end of a text.
fn parse_message_id(text: &str) -> Option<MessageId> {
    let (conversation, place) = text.split_whitespace().last()?.split_once('/')?;
    Some((conversation.parse().ok()?, place.parse().ok()?))
}

impl Sent {
    /// Returns true if every accepted message is completed or a dead letter. Messages without an
    /// answer, which may be stored as well, do not count.
    fn is_processed(&self, done: &[(MessageId, Duration)], dead: &[MessageId]) -> bool {
        let processed: BTreeSet<&MessageId> = done.iter().map(|(id, _)| id).chain(dead).collect();
        self.messages.iter().all(|(id, (_, acceptance))| {
            *acceptance != Acceptance::Accepted || processed.contains(id)
        })
    }

    /// Waits until every accepted message is completed or a dead letter and the outbox is empty.
    /// Returns the history.
    ///
    /// # Errors
    /// If that takes longer than `within`.
    pub async fn history(self, env: &TestEnv, within: Duration) -> anyhow::Result<History> {
        let keys: BTreeMap<&str, MessageId> =
            self.messages.iter().map(|(id, (key, _))| (key.as_str(), *id)).collect();
        let slack = &env.slack;
        let answered = || -> BTreeSet<String> {
            let receipts = slack.receipts().into_iter().filter(|r| r.by == "response_url");
            receipts.map(|receipt| receipt.to).collect()
        };
        let is_answered = |answered: &BTreeSet<String>, url: &str| {
            answered.iter().any(|path| url.ends_with(path.as_str()))
        };
        let drained = async || {
            let rows = sqlx::query(
                "select dedup_key, extract(epoch from at - lag(at) over (partition by lane order by at))::float8 as gap
                   from delivery_log where outcome = 'completed' order by at",
            );
            let done: Vec<(MessageId, Duration)> = rows
                .fetch_all(&env.pool)
                .await
                .ok()?
                .iter()
                .filter_map(|row| {
                    let gap: Option<f64> = row.get("gap");
                    let id = keys.get(row.get::<&str, _>("dedup_key"))?;
                    Some((*id, Duration::from_secs_f64(gap.unwrap_or_default())))
                })
                .collect();
            let dead: Vec<String> = sqlx::query_scalar(
                "select dedup_key from dead_letters where dedup_key is not null",
            )
            .fetch_all(&env.pool)
            .await
            .ok()?;
            let dead: Vec<MessageId> =
                dead.iter().filter_map(|key| keys.get(key.as_str()).copied()).collect();
            let open: i64 = sqlx::query_scalar("select count(*) from outbox")
                .fetch_one(&env.pool)
                .await
                .ok()?;
            let answered = answered();
            let waiting = |(command, url): &(Command, String)| {
                matches!(command, Command::Accepted { .. }) && !is_answered(&answered, url)
            };
            let finished =
                self.is_processed(&done, &dead) && open == 0 && !self.commands.iter().any(waiting);
            finished.then_some((done, dead))
        };
        let drained = try_eventually(
            "all accepted messages are completed or dead letters, and the outbox is empty",
            within,
            drained,
        );
        let (done, dead) = match drained.await {
            Ok(drained) => drained,
            Err(late) => {
                let left = env.unfinished().await?;
                let unanswered = self.commands.iter().filter(|(command, url)| {
                    matches!(command, Command::Accepted { .. }) && !is_answered(&answered(), url)
                });
                let unanswered: Vec<&str> = unanswered.map(|(_, url)| url.as_str()).collect();
                let mut open = Vec::new();
                for (id, (key, acceptance)) in &self.messages {
                    if *acceptance == Acceptance::Accepted
                        && env.find_outcome(&DedupKey::from_stored(key.clone())).await.is_none()
                    {
                        open.push(id);
                    }
                }
                return Err(late.context(format!(
                    "{left}; not processed: {open:?}; unanswered: {unanswered:?}"
                )));
            }
        };
        let posted = slack.receipts();
        let posted = posted.iter().filter(|receipt| receipt.token.as_ref() == Some(&self.token));
        let posted = posted
            .filter_map(|receipt| parse_message_id(receipt.text().strip_prefix("I heard: ")?));
        let agent_calls = env.agent.requests();
        let agent_calls =
            agent_calls.iter().filter(|a| a.question["connection"] == self.connection.as_str());
        let agent_calls = agent_calls
            .filter_map(|agent_calls| parse_message_id(agent_calls.question["text"].as_str()?));
        let answered = answered();
        let commands = self.commands.iter().map(|(command, url)| match command {
            Command::Accepted { .. } => Command::Accepted { answered: is_answered(&answered, url) },
            other => other.clone(),
        });
        Ok(History {
            sent: self.messages.iter().map(|(id, (_, acceptance))| (*id, *acceptance)).collect(),
            attempts: self.tally.attempts,
            rejected: self.tally.rejected,
            slowest: self.tally.slowest,
            done,
            dead,
            agent_calls: agent_calls.collect(),
            posted: posted.collect(),
            commands: commands.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_accepted_messages() {
        let message = |place, acceptance| ((0, place), (format!("key {place}"), acceptance));
        let all = [
            message(0, Acceptance::Accepted),
            message(1, Acceptance::Unknown),
            message(2, Acceptance::Accepted),
        ];
        let sent = Sent { messages: all.into(), ..Sent::default() };
        let stored = [((0, 0), Duration::ZERO), ((0, 1), Duration::ZERO)];
        assert!(!sent.is_processed(&stored, &[]));
        assert!(sent.is_processed(&stored, &[(0, 2)]));
    }
}
