//! A load of conversations, sent as Slack sends: what is refused is sent again until it is taken.
//!
//! In: a world, an app whose conversations belong to the sample agent, and how much. Out: a [`History`] for the checker.
//! In each conversation one message is accepted before the next is sent, so that the order in which they were accepted is
//! known; conversations run beside each other.

use crate::{
    checker::{History, Said},
    slack::webhook::Webhook,
    until::try_until,
    world::{App, World},
};
use sqlx::Row;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Between two messages of a conversation.
const PACE: Duration = Duration::from_millis(150);
/// Slack would wait a minute; we have less time.
const RESEND: Duration = Duration::from_millis(200);

/// What was sent, and under which dedupe key.
#[derive(Debug, Default)]
pub struct Sent(BTreeMap<Said, (String, bool)>);

/// Sends in so many conversations until `over` is set; every message that was begun is sent until it is taken.
pub async fn run(world: &World, app: &App, conversations: u32, over: &AtomicBool) -> Sent {
    let talks = (0..conversations).map(async |conversation| {
        let channel = channel(conversation);
        let mut sent = Vec::new();
        let mut pace = tokio::time::interval(PACE);
        while !over.load(Ordering::Relaxed) {
            pace.tick().await;
            let place = sent.len() as u32;
            let text = format!("{conversation}/{place}");
            let webhook = Webhook::message(&world.slack, app, &channel, "U1", &text);
            let mut tries = 0;
            let accepted = loop {
                match world.send(app, &webhook).await {
                    Ok(answer) if answer.status == 200 => break true,
                    _ if tries == 300 => break false,
                    _ => tries += 1,
                }
                tokio::time::sleep(RESEND).await;
            };
            sent.push(((conversation, place), (webhook.dedupe.to_string(), accepted)));
        }
        sent
    });
    Sent(futures_util::future::join_all(talks).await.into_iter().flatten().collect())
}

/// A direct message each.
fn channel(conversation: u32) -> String {
    format!("D{conversation:04}")
}

impl Sent {
    /// Waits until everything accepted is done or dead and nothing is left to be said, then gives what happened.
    ///
    /// # Errors
    /// When that is not so in time.
    pub async fn history(self, world: &World, within: Duration) -> anyhow::Result<History> {
        let keys: BTreeMap<&str, Said> =
            self.0.iter().map(|(said, (key, _))| (key.as_str(), *said)).collect();
        let drained = async || {
            let rows = sqlx::query(
                "select dedupe_key, extract(epoch from at - lag(at) over (order by at))::float8 as gap from seen
                  where outcome = 'done' order by at",
            );
            let done: Vec<(Said, Duration)> = rows
                .fetch_all(&world.pool)
                .await
                .ok()?
                .iter()
                .filter_map(|row| {
                    let gap: Option<f64> = row.get("gap");
                    let said = keys.get(row.get::<&str, _>("dedupe_key"))?;
                    Some((*said, Duration::from_secs_f64(gap.unwrap_or_default())))
                })
                .collect();
            let dead: Vec<String> =
                sqlx::query_scalar("select dedupe_key from dead where dedupe_key is not null")
                    .fetch_all(&world.pool)
                    .await
                    .ok()?;
            let dead: Vec<Said> =
                dead.iter().filter_map(|key| keys.get(key.as_str()).copied()).collect();
            let open: i64 = sqlx::query_scalar(
                "select count(*) from outbox where state in ('pending', 'sending')",
            )
            .fetch_one(&world.pool)
            .await
            .ok()?;
            let accepted = self.0.values().filter(|(_, accepted)| *accepted).count();
            (done.len() + dead.len() >= accepted && open == 0).then_some((done, dead))
        };
        let (done, dead) =
            try_until("everything accepted is done or dead, and said", within, drained).await?;
        let told = world.slack.receipts();
        let told = told.iter().filter_map(|receipt| {
            let (conversation, place) =
                receipt.text().strip_prefix("I heard: ")?.split_once('/')?;
            Some((conversation.parse().ok()?, place.parse().ok()?))
        });
        Ok(History {
            sent: self.0.iter().map(|(said, (_, accepted))| (*said, *accepted)).collect(),
            done,
            dead,
            told: told.collect(),
        })
    }
}
