//! A load of conversations, sent as Slack sends: what is refused is sent again until it is taken.
//!
//! In: a world, an app whose conversations belong to the sample agent, and how much. Out: a [`History`] for the checker.
//! In each conversation one message is accepted before the next is sent, so that the order in which they were accepted is
//! known; conversations run beside each other. Commands are sent once, by users who are each told something.

use crate::{
    checker::{Command, Fate, History, Said},
    slack::{Answer, signing::Signing, webhook::Webhook},
    until::try_until,
    world::{App, Ingest, World},
};
use shared::codec::envelope::DedupeKey;
use sqlx::Row;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// Between two messages of a conversation, or two commands of a user.
const PACE: Duration = Duration::from_millis(150);
/// Slack would wait a minute; we have less time.
const RESEND: Duration = Duration::from_millis(200);
/// A message is sent this often at most: a minute's patience.
const TRIES: usize = 300;

/// What to send.
pub struct Load<'a> {
    world: &'a World,
    app: &'a App,
    conversations: u32,
    users: u32,
    pace: Duration,
    says: String,
    balanced: bool,
    signing: Signing,
    turn: AtomicUsize,
}

/// What was sent, and what came of it.
#[derive(Debug, Default)]
pub struct Sent {
    messages: BTreeMap<Said, (String, Fate)>,
    commands: Vec<(Command, String)>,
    tally: Tally,
    token: String,
    connection: String,
}

#[derive(Debug, Default)]
struct Tally {
    attempts: usize,
    turned_away: usize,
    slowest: Duration,
}

/// The channel of a conversation: a direct message each.
pub fn channel(conversation: u32) -> String {
    format!("D{conversation:04}")
}

/// Sends in so many conversations until `over` is set; every message that was begun is sent until it is taken.
pub async fn run(world: &World, app: &App, conversations: u32, over: &AtomicBool) -> Sent {
    Load::new(world, app, conversations).run(over).await
}

impl<'a> Load<'a> {
    /// In so many conversations.
    pub fn new(world: &'a World, app: &'a App, conversations: u32) -> Self {
        let (pace, turn) = (PACE, AtomicUsize::new(0));
        Self {
            world,
            app,
            conversations,
            users: 0,
            pace,
            says: String::new(),
            balanced: false,
            signing: Signing::default(),
            turn,
        }
    }

    /// And so many users who send commands.
    pub fn commands(self, users: u32) -> Self {
        Self { users, ..self }
    }

    /// This much time between two of a conversation.
    pub fn pace(self, pace: Duration) -> Self {
        Self { pace, ..self }
    }

    /// Every message begins with these words, for the agent to behave by.
    pub fn says(self, words: &str) -> Self {
        Self { says: format!("{words} "), ..self }
    }

    /// Sends only to ingests that say that they are ready, as a load balancer does.
    pub fn balanced(self) -> Self {
        Self { balanced: true, ..self }
    }

    /// Signs with what this says at the moment.
    pub fn signing(self, signing: Signing) -> Self {
        Self { signing, ..self }
    }

    /// Sends until `over` is set; every message that was begun is sent until it is taken.
    pub async fn run(&self, over: &AtomicBool) -> Sent {
        let talks = futures_util::future::join_all(
            (0..self.conversations).map(|conversation| self.talk(conversation, over)),
        );
        let people = futures_util::future::join_all((0..self.users).map(|n| self.command(n, over)));
        let (talks, people) = tokio::join!(talks, people);
        let mut sent = Sent {
            token: self.app.token.clone(),
            connection: self.app.connection.to_string(),
            ..Sent::default()
        };
        for (messages, tally) in talks {
            sent.messages.extend(messages);
            sent.tally.add(&tally);
        }
        sent.commands = people.into_iter().flatten().collect();
        sent
    }

    async fn talk(
        &self,
        conversation: u32,
        over: &AtomicBool,
    ) -> (Vec<(Said, (String, Fate))>, Tally) {
        let channel = channel(conversation);
        let (mut sent, mut tally) = (Vec::new(), Tally::default());
        let mut pace = tokio::time::interval(self.pace);
        while !over.load(Ordering::Relaxed) {
            pace.tick().await;
            let place = sent.len() as u32;
            let text = format!("{}{conversation}/{place}", self.says);
            let webhook = Webhook::message(&self.world.slack, self.app, &channel, "U1", &text);
            let mut fate = Fate::Refused;
            for _ in 0..TRIES {
                let began = Instant::now();
                let answer = self.send(&webhook).await;
                tally.attempts += 1;
                tally.slowest = tally.slowest.max(began.elapsed());
                match answer {
                    Some(answer) if answer.status == 200 => {
                        fate = Fate::Accepted;
                        break;
                    }
                    Some(answer) if (400..500).contains(&answer.status) => {}
                    _ => fate = Fate::Unknown,
                }
                tally.turned_away += 1;
                tokio::time::sleep(RESEND).await;
            }
            sent.push(((conversation, place), (webhook.dedupe.to_string(), fate)));
        }
        (sent, tally)
    }

    async fn command(&self, user: u32, over: &AtomicBool) -> Vec<(Command, String)> {
        let (user, mut sent) = (format!("U{user:04}"), Vec::new());
        let mut pace = tokio::time::interval(self.pace);
        while !over.load(Ordering::Relaxed) {
            pace.tick().await;
            let webhook =
                Webhook::command(&self.world.slack, self.app, "C0001", &user, "/lobu", "help");
            let command = match self.send(&webhook).await {
                None => Command::Unknown,
                Some(answer) if answer.status == 200 && answer.body.is_empty() => {
                    Command::Accepted { answered: false } // not yet
                }
                Some(answer) if answer.status == 200 && answer.body.contains("try again") => {
                    Command::ToldSo
                }
                Some(answer) => Command::Failed(format!("{} {}", answer.status, answer.body)),
            };
            sent.push((command, webhook.response_url));
        }
        sent
    }

    /// To some ingest; where nobody listens, to the next, as a load balancer does.
    async fn send(&self, webhook: &Webhook) -> Option<Answer> {
        let ingests = &self.world.ingests;
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for n in first..first + ingests.len() {
            let ingest = &ingests[n % ingests.len()];
            if self.balanced && !is_ready(ingest).await {
                continue;
            }
            let url = ingest.url(self.app);
            let secret = self.signing.next(&self.app.secret);
            match self.world.slack.send(&url, &secret, webhook).await {
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
        self.turned_away += other.turned_away;
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Which message a text is.
fn said(text: &str) -> Option<Said> {
    let (conversation, place) = text.split_whitespace().last()?.split_once('/')?;
    Some((conversation.parse().ok()?, place.parse().ok()?))
}

impl Sent {
    /// How many messages were accepted so far.
    pub fn accepted(&self) -> usize {
        self.messages.values().filter(|(_, fate)| *fate == Fate::Accepted).count()
    }

    /// Waits until everything accepted is done or dead and nothing is left to be said, then gives what happened.
    ///
    /// # Errors
    /// When that is not so in time.
    pub async fn history(self, world: &World, within: Duration) -> anyhow::Result<History> {
        let keys: BTreeMap<&str, Said> =
            self.messages.iter().map(|(said, (key, _))| (key.as_str(), *said)).collect();
        let (accepted, slack) = (self.accepted(), &world.slack);
        let answered = || -> BTreeSet<String> {
            let receipts = slack.receipts().into_iter().filter(|r| r.by == "response_url");
            receipts.map(|receipt| receipt.to).collect()
        };
        let heard = |answered: &BTreeSet<String>, url: &str| {
            answered.iter().any(|path| url.ends_with(path.as_str()))
        };
        let drained = async || {
            let rows = sqlx::query(
                "select dedup_key, extract(epoch from at - lag(at) over (partition by lane order by at))::float8 as gap
                   from delivery_log where outcome = 'completed' order by at",
            );
            let done: Vec<(Said, Duration)> = rows
                .fetch_all(&world.pool)
                .await
                .ok()?
                .iter()
                .filter_map(|row| {
                    let gap: Option<f64> = row.get("gap");
                    let said = keys.get(row.get::<&str, _>("dedup_key"))?;
                    Some((*said, Duration::from_secs_f64(gap.unwrap_or_default())))
                })
                .collect();
            let dead: Vec<String> = sqlx::query_scalar(
                "select dedup_key from dead_letters where dedup_key is not null",
            )
            .fetch_all(&world.pool)
            .await
            .ok()?;
            let dead: Vec<Said> =
                dead.iter().filter_map(|key| keys.get(key.as_str()).copied()).collect();
            let open: i64 = sqlx::query_scalar("select count(*) from outbox")
                .fetch_one(&world.pool)
                .await
                .ok()?;
            let answered = answered();
            let waiting = |(command, url): &(Command, String)| {
                matches!(command, Command::Accepted { .. }) && !heard(&answered, url)
            };
            let finished = done.len() + dead.len() >= accepted
                && open == 0
                && !self.commands.iter().any(waiting);
            finished.then_some((done, dead))
        };
        let drained = try_until("everything accepted is done or dead, and said", within, drained);
        let (done, dead) = match drained.await {
            Ok(drained) => drained,
            Err(late) => {
                let left = world.unfinished().await?;
                let unheard = self.commands.iter().filter(|(command, url)| {
                    matches!(command, Command::Accepted { .. }) && !heard(&answered(), url)
                });
                let unheard: Vec<&str> = unheard.map(|(_, url)| url.as_str()).collect();
                let mut open = Vec::new();
                for (said, (key, fate)) in &self.messages {
                    if *fate == Fate::Accepted
                        && world.look(&DedupeKey::stored(key.clone())).await.is_none()
                    {
                        open.push(said);
                    }
                }
                return Err(
                    late.context(format!("{left}; not handled: {open:?}; unheard: {unheard:?}"))
                );
            }
        };
        let told = slack.receipts();
        let told = told.iter().filter(|receipt| receipt.token.as_ref() == Some(&self.token));
        let told = told.filter_map(|receipt| said(receipt.text().strip_prefix("I heard: ")?));
        let asked = world.agent.asked();
        let asked = asked.iter().filter(|a| a.question["connection"] == self.connection.as_str());
        let asked = asked.filter_map(|asked| said(asked.question["text"].as_str()?));
        let answered = answered();
        let commands = self.commands.iter().map(|(command, url)| match command {
            Command::Accepted { .. } => Command::Accepted { answered: heard(&answered, url) },
            other => other.clone(),
        });
        Ok(History {
            sent: self.messages.iter().map(|(said, (_, fate))| (*said, *fate)).collect(),
            attempts: self.tally.attempts,
            turned_away: self.tally.turned_away,
            slowest: self.tally.slowest,
            done,
            dead,
            asked: asked.collect(),
            told: told.collect(),
            commands: commands.collect(),
        })
    }
}
