//! People who race for link codes, each in a channel of their own.
//!
//! In: how many codes, and how many people for each. Out: their commands, to be sent; then who heard what, judged. To the checker
//! a code is a conversation and a person a place in it: whoever was taken is answered, once. Beyond that a code has one winner, its
//! channel is the one that is bound, and everybody else is told in so many words that it is used.

use crate::{
    checker::{Fate, History, Said, Verdict, check},
    slack::webhook::Webhook,
    until::try_until,
    world::{App, World},
};
use anyhow::ensure;
use futures_util::{StreamExt, TryStreamExt, stream};
use shared::types::Surface;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What all but the winner hear.
const USED: &str = "This code was already used. Ask for a new one.";

/// A race.
pub struct Race {
    codes: u32,
    people: Vec<(Said, Webhook)>,
}

impl Race {
    /// Mints the codes; nobody runs yet.
    ///
    /// # Errors
    /// When a code can't be minted.
    pub async fn new(world: &World, app: &App, codes: u32, each: u32) -> anyhow::Result<Self> {
        let mut people = Vec::new();
        for code in 0..codes {
            let text = format!("link {}", world.mint(app, &[Surface::Channel]).await?);
            for person in 0..each {
                let said = (code, person);
                let (channel, user) = (channel(said), format!("U{code:04}X{person}"));
                let command = Webhook::command(&world.slack, app, &channel, &user, "/lobu", &text);
                people.push((said, command));
            }
        }
        Ok(Self { codes, people })
    }

    /// Everybody's command: those who race for one code follow each other.
    pub fn commands(&self) -> impl Iterator<Item = &(Said, Webhook)> {
        self.people.iter()
    }

    /// Everybody runs, so many at once. Gives how long the slowest answer took.
    ///
    /// # Errors
    /// When one is not taken.
    pub async fn run(&self, world: &World, app: &App, at_once: usize) -> anyhow::Result<Duration> {
        let taken = stream::iter(&self.people).map(async |(said, webhook)| {
            let answer = world.send(app, webhook).await?;
            ensure!(answer.status == 200 && answer.body.is_empty(), "{said:?} got {answer:?}");
            Ok(answer.took)
        });
        let slowest = async |slowest: Duration, took| Ok(slowest.max(took));
        taken.buffer_unordered(at_once).try_fold(Duration::ZERO, slowest).await
    }

    /// Waits until everybody has heard something.
    ///
    /// # Errors
    /// When somebody has not, in time.
    pub async fn heard(&self, world: &World, within: Duration) -> anyhow::Result<()> {
        let consumed = "select count(*) from link_codes where consumed_at is not null";
        let everybody: BTreeSet<&str> = self.paths(world).collect();
        let heard = async || {
            // Asked first, since it costs less than looking through all that was said.
            let consumed: i64 = sqlx::query_scalar(consumed).fetch_one(&world.pool).await.ok()?;
            (consumed == i64::from(self.codes)).then_some(())?;
            let receipts = world.slack.receipts();
            let heard = receipts.iter().map(|receipt| receipt.to.as_str());
            everybody.is_subset(&heard.collect()).then_some(())
        };
        try_until("everybody who raced has heard something", within, heard).await
    }

    /// Judges it, once nothing is left to be said.
    ///
    /// # Errors
    /// When a code was won by nobody or by several, or somebody heard anything else.
    pub async fn judged(&self, world: &World, within: Duration) -> anyhow::Result<Verdict> {
        let open = "select count(*) from outbox";
        let all_said = async || {
            let open: i64 = sqlx::query_scalar(open).fetch_one(&world.pool).await.ok()?;
            (open == 0).then_some(())
        };
        try_until("nothing is left to be said", within, all_said).await?;
        let who: BTreeMap<&str, Said> =
            self.paths(world).zip(&self.people).map(|(path, (said, _))| (path, *said)).collect();
        let receipts = world.slack.receipts();
        let mut heard = BTreeMap::<Said, BTreeSet<&str>>::new();
        let mut history = History { attempts: self.people.len(), ..History::default() };
        for receipt in &receipts {
            let Some(said) = who.get(receipt.to.as_str()) else { continue };
            history.told.push(*said);
            heard.entry(*said).or_default().insert(receipt.text());
        }
        history.told.sort_unstable(); // they raced: there is no order between them
        let mut winners = Vec::new();
        for (said, texts) in &heard {
            match texts.iter().copied().collect::<Vec<_>>()[..] {
                [text] if text.starts_with("Linked.") => winners.push(*said),
                [USED] => {}
                _ => anyhow::bail!("{said:?} heard {texts:?}"),
            }
        }
        let won = |code: &u32| winners.iter().filter(|winner| winner.0 == *code).count();
        let wrong = (0..self.codes).map(|code| (code, won(&code))).find(|(_, times)| *times != 1);
        ensure!(wrong.is_none(), "a code, and how often it was won: {wrong:?}");

        let consumed = "select consumed_channel from link_codes where consumed_at is not null";
        let bound = "select channel_id from channel_bindings";
        let channels: BTreeSet<String> = winners.iter().map(|said| channel(*said)).collect();
        for (what, sql) in [("consumed", consumed), ("bound", bound)] {
            let there: Vec<String> = sqlx::query_scalar(sql).fetch_all(&world.pool).await?;
            ensure!(there.len() == winners.len(), "{} {what} of {}", there.len(), self.codes);
            ensure!(there.into_iter().collect::<BTreeSet<_>>() == channels, "{what} by others");
        }
        let done = "select u.key from unnest($1::text[]) as u (key)
                      join processed_keys p on p.key = substr(sha256(convert_to(u.key, 'UTF8')), 1, 16)";
        let keys: Vec<&str> = self.people.iter().map(|(_, w)| w.dedupe.as_str()).collect();
        let done: Vec<String> = sqlx::query_scalar(done).bind(keys).fetch_all(&world.pool).await?;
        let done: BTreeSet<&str> = done.iter().map(String::as_str).collect();
        for (said, webhook) in &self.people {
            history.sent.insert(*said, Fate::Accepted);
            if done.contains(webhook.dedupe.as_str()) {
                history.done.push((*said, Duration::ZERO));
            }
        }
        Ok(check(&history))
    }

    /// Where each of them hears.
    fn paths<'a>(&'a self, world: &World) -> impl Iterator<Item = &'a str> + use<'a> {
        let origin = world.slack.response_origin().len();
        self.people.iter().map(move |(_, webhook)| &webhook.response_url[origin..])
    }
}

fn channel((code, person): Said) -> String {
    format!("C{code:04}X{person}")
}
