//! A day of fifty connections: over two thousand webhooks of every kind, decided by a seed.
//!
//! ```text
//! tenants   who there is: connections, their agents, link codes
//! pen       webhooks as Slack would write them, out of the fixtures
//! hours     what people do
//! ```
//!
//! In: a seed. Out: a [`Day`], the same for the same seed in every byte: ids, times, words and codes come from the seed, none
//! from a clock. To a world it is declared, and sent through a real ingest, so that what lies in the stream are real envelopes;
//! signatures, times of arrival and the address of the Slack that `response_url`s lead to are then the world's own. Its
//! recording is some megabytes, and made in less time than it would take to fetch: so what is kept in the repository is not the
//! file but its digest, which shows when the day becomes another.
//!
//! What people do in an hour has one result, however fast it is worked off: conversations change nothing for each other.
//! First they talk; then, after a pause, they type the commands that change who answers where. What ends a connection comes
//! last. What ended an installation is not followed by more of it: whether that still gets in hangs on how fast the
//! directory is.

mod hours;
mod pen;
mod tenants;

use crate::{
    provision::new_agent,
    recording::{ANY_SLACK, PAUSE, Recording, readdressed},
    slack::{delivery::Reason, tokens::Installation, webhook::Webhook},
    until::try_until,
    world::{SMALL, SOON, Size, World},
};
use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use shared::{
    config,
    directory::Directory,
    secrets::Secret,
    store::{NewAgent, NewConnection},
    types::{ClaimCode, Settings, Status},
};
use std::time::Duration;
use tenants::{Code, Tenant};

/// Conversations that are sent at once.
const SENDERS: usize = 16;
/// Longest that a stretch of the day may take to be worked off.
const WORKED_OFF_WITHIN: Duration = Duration::from_secs(60);
/// What was put in needs no ingest.
const WORKER_ONLY: Size = Size { ingests: 0, workers: 1, own_postgres: false };

/// A day.
#[derive(Debug)]
pub struct Day {
    tenants: Vec<Tenant>,
    codes: Vec<Code>,
    /// With a pause between two of them.
    stretches: Vec<Vec<Talk>>,
}

/// What one conversation sends, in this order. Others of the same stretch are sent beside it.
type Talk = Vec<Sent>;

/// A webhook of the day.
#[derive(Debug)]
struct Sent {
    /// Whose.
    tenant: usize,
    webhook: Webhook,
    /// Whether Slack sends it a second time, as if the first answer had been lost.
    again: bool,
    /// Whether it goes into the stream.
    stored: bool,
}

impl Day {
    /// The day of a seed.
    ///
    /// # Errors
    /// When the fixtures can't be read.
    pub fn of(seed: u64) -> anyhow::Result<Self> {
        hours::day(seed)
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.tenants.len()
    }

    /// How many webhooks go into the stream.
    pub fn stored(&self) -> usize {
        self.sent().filter(|sent| sent.stored).count()
    }

    fn sent(&self) -> impl Iterator<Item = &Sent> {
        self.stretches.iter().flatten().flatten()
    }

    /// A name for all that is sent, in its order.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for sent in self.sent() {
            hash.update(self.tenants[sent.tenant].app.connection.to_bytes());
            hash.update([u8::from(sent.again)]);
            hash.update(&sent.webhook.body);
        }
        let hash: [u8; 32] = hash.finalize().into();
        hash.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    /// Lives the day in a world of its own, and gives that and what lay in its stream.
    ///
    /// # Errors
    /// When a webhook is not taken, or not worked off in time.
    pub async fn live(&self) -> anyhow::Result<(World, Recording)> {
        let world = World::start(SMALL).await?;
        self.declare(&world).await?;
        for stretch in &self.stretches {
            self.send(&world, stretch).await?;
            world.worked_off(WORKED_OFF_WITHIN).await?;
            tokio::time::sleep(PAUSE + PAUSE / 4).await; // the pause itself: nobody says anything
        }
        let recording = Recording::of(&world).await?;
        Ok((world, recording))
    }

    /// Works a recording of the day off in a world of its own.
    ///
    /// # Errors
    /// When it is not taken, or not worked off in time.
    pub async fn work_off(&self, recording: &Recording) -> anyhow::Result<World> {
        let world = World::start(WORKER_ONLY).await?;
        self.declare(&world).await?;
        recording.put(&world).await?;
        world.worked_off(WORKED_OFF_WITHIN).await?;
        Ok(world)
    }

    /// Makes its connections, agents and codes, the same in every world.
    async fn declare(&self, world: &World) -> anyhow::Result<()> {
        let directory = Directory::open(&config::jetstream(world.client().clone())).await?;
        let mut revision = 0;
        for tenant in &self.tenants {
            let app = &tenant.app;
            world.store.ensure_organization(&app.org, "Example").await?;
            for (id, name, mode) in &tenant.agents {
                let plain = new_agent(&app.org, id.clone(), world.agent.url())?;
                let new = NewAgent { name: (*name).to_owned(), mode: *mode, ..plain };
                world.store.put_agent(&new).await?;
            }
            let team = app.team.parse()?;
            let new = NewConnection {
                id: app.connection,
                org: app.org.clone(),
                agent: tenant.own.clone(),
                app: app.app.parse()?,
                team: tenant.enterprise.is_none().then_some(team),
                enterprise: tenant.enterprise.as_ref().map(|id| id.parse()).transpose()?,
                preview_mode: tenant.preview,
                status: Status::Active,
                signing_secret: Secret::new(app.secret.clone())?,
                bot_token: Some(Secret::new(app.token.clone())?),
                bot_user: Some(app.bot_user.clone()),
                settings: Settings { answer_bots: tenant.answer_bots, ..Settings::default() },
            };
            world.store.create_connection(&new).await?;
            let there = Installation::new(&app.app, &app.team, &app.bot_user);
            let there = match &tenant.enterprise {
                Some(id) => there.of_enterprise(id),
                None => there,
            };
            world.slack.install(&app.token, there);
            let entry = world.store.directory_entry(app.connection).await?;
            let entry = entry.context("the connection that was just made")?;
            revision = directory.project(app.connection, &entry).await?;
        }
        // The day lies in the past: its apps were installed before it.
        sqlx::query("update connections set installed_at = to_timestamp($1)")
            .bind((pen::BEGINS - 86_400) as f64)
            .execute(&world.pool)
            .await?;
        for code in &self.codes {
            mint(world, code).await?;
        }
        Ok(directory.applied_everywhere(revision, SOON).await?)
    }

    /// Sends a stretch of the day.
    async fn send(&self, world: &World, stretch: &[Talk]) -> anyhow::Result<()> {
        let talks = stream::iter(stretch).map(|talk| async move {
            for sent in talk {
                self.send_one(world, sent).await?;
            }
            anyhow::Ok(())
        });
        talks.buffer_unordered(SENDERS).try_collect().await
    }

    async fn send_one(&self, world: &World, sent: &Sent) -> anyhow::Result<()> {
        let (app, mut webhook) = (&self.tenants[sent.tenant].app, sent.webhook.clone());
        let here = world.slack.response_origin();
        if let Some(body) = readdressed(&webhook.body, ANY_SLACK, &here) {
            webhook.body = body;
        }
        world.slack.adopt(&webhook.body);
        let ingest = world.ingests.first().context("an ingest to send to")?;
        let url = ingest.url(app);
        // Slack would wait a minute, and a person type it again: here it is sent until it is taken.
        let taken = async || {
            let answer = world.slack.send(&url, &app.secret, &webhook).await.ok()?;
            (answer.status == 200 && !answer.body.contains("try again")).then_some(())
        };
        let what = format!("{} is taken", webhook.what);
        try_until(&what, SOON, taken).await.with_context(|| world.logs())?;
        if sent.again {
            let lost = Some((1, Reason::HttpTimeout));
            world.slack.attempt(&url, &app.secret, &webhook, lost).await;
        }
        Ok(())
    }
}

/// A code that is not chosen by chance: no product code makes such.
async fn mint(world: &World, code: &Code) -> anyhow::Result<()> {
    let hash = code.code.parse::<ClaimCode>().context("a code")?.hash();
    let surfaces: Vec<&str> = code.surfaces.iter().map(|surface| surface.as_str()).collect();
    sqlx::query(
        "insert into link_codes (code_hash, org_id, agent_id, surfaces, connection_id, created_by, created_at, expires_at)
         select $1, $2, $3, $4, $5, 'the day', at, at + interval '59 minutes'
           from (select now() - case when $6 then interval '2 hours' else '0' end as at) made",
    )
    .bind(hash.as_bytes())
    .bind(code.org.as_str())
    .bind(code.agent.as_str())
    .bind(surfaces)
    .bind(code.connection.map(|id| id.to_string()))
    .bind(code.expired)
    .execute(&world.pool)
    .await?;
    Ok(())
}
