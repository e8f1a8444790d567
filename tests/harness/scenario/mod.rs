//! Scenarios: a day of fifty connections with more than two thousand webhooks of every kind,
//! generated from a seed.
//!
//! ```text
//! tenants   connections, their agents, link codes
//! webhooks  webhooks as Slack writes them, made from the fixtures
//! timeline  the webhooks of each hour
//! ```
//!
//! The same seed gives the same [`Scenario`], byte for byte: ids, times, texts and codes come from
//! the seed, none from a clock. A scenario is declared in a test environment and sent through a
//! real ingest, so that the stream holds real envelopes. Signatures, times of receipt and the
//! origin of `response_url`s are those of the environment. A recording has several megabytes and is
//! generated faster than it is downloaded, so the repository has only its digest. A changed digest
//! shows that the scenario changed.
//!
//! The result of an hour does not depend on the speed of processing, because no conversation
//! changes another. Messages come first, then, after a pause, the commands that change bindings.
//! Events that end a connection come last. No webhook of an installation follows its end, because
//! ingest accepts such a webhook or not depending on the speed of the directory.

mod timeline;
mod webhooks;
mod tenants;

use crate::{
    eventually::try_eventually,
    provision::new_agent,
    recording::{ANY_SLACK, PAUSE, Recording, replace_origin},
    slack::{delivery::Reason, tokens::Installation, webhook::Webhook},
    test_env::{SMALL, Size, TIMEOUT, TestEnv},
};
use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use shared::{
    directory::Directory,
    domain::{ConnectionSettings, ConnectionStatus, LinkCode},
    runtime::config,
    secrets::Secret,
    store::{NewAgent, NewConnection},
};
use std::time::Duration;
use tenants::{Code, Tenant};

/// Conversations that are sent concurrently.
const SENDERS: usize = 16;
/// Maximum time to process the webhooks between two pauses.
const PROCESSED_WITHIN: Duration = Duration::from_secs(60);
/// Environment for processing a recording, which needs no ingest.
const WORKER_ONLY: Size = Size { ingests: 0, workers: 1, own_postgres: false };

/// A generated day.
#[derive(Debug)]
pub struct Scenario {
    tenants: Vec<Tenant>,
    codes: Vec<Code>,
    /// Groups of conversations, separated by pauses.
    stretches: Vec<Vec<Exchange>>,
}

/// The webhooks of one conversation, in order. Exchanges of the same stretch are sent concurrently.
type Exchange = Vec<Sent>;

/// A webhook of the scenario.
#[derive(Debug)]
struct Sent {
    /// Index of the tenant.
    tenant: usize,
    webhook: Webhook,
    /// True if Slack resends it, as after a lost answer.
    again: bool,
    /// True if it is stored in the stream.
    stored: bool,
}

impl Scenario {
    /// Generates the scenario of a seed.
    ///
    /// # Errors
    /// If the fixtures can't be read.
    pub fn of(seed: u64) -> anyhow::Result<Self> {
        timeline::generate(seed)
    }

    /// Returns the number of connections.
    pub fn connections(&self) -> usize {
        self.tenants.len()
    }

    /// Returns the number of webhooks that are stored in the stream.
    pub fn stored(&self) -> usize {
        self.sent().filter(|sent| sent.stored).count()
    }

    fn sent(&self) -> impl Iterator<Item = &Sent> {
        self.stretches.iter().flatten().flatten()
    }

    /// Returns a digest of all webhooks in order.
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

    /// Runs the scenario in a new environment. Returns the environment and the recording of its
    /// stream.
    ///
    /// # Errors
    /// If a webhook is not accepted, or not processed in time.
    pub async fn run_live(&self) -> anyhow::Result<(TestEnv, Recording)> {
        let env = TestEnv::start(SMALL).await?;
        self.declare(&env).await?;
        for stretch in &self.stretches {
            self.send(&env, stretch).await?;
            env.wait_until_processed(PROCESSED_WITHIN).await?;
            tokio::time::sleep(PAUSE + PAUSE / 4).await; // the pause that the recording has
        }
        let recording = Recording::of(&env).await?;
        Ok((env, recording))
    }

    /// Processes a recording of the scenario in a new environment.
    ///
    /// # Errors
    /// If the recording is not accepted, or not processed in time.
    pub async fn process(&self, recording: &Recording) -> anyhow::Result<TestEnv> {
        let env = TestEnv::start(WORKER_ONLY).await?;
        self.declare(&env).await?;
        recording.put(&env).await?;
        env.wait_until_processed(PROCESSED_WITHIN).await?;
        Ok(env)
    }

    /// Creates the connections, agents and codes, the same in every environment.
    async fn declare(&self, env: &TestEnv) -> anyhow::Result<()> {
        let directory = Directory::open(&config::jetstream(env.client().clone())).await?;
        let mut revision = 0;
        for tenant in &self.tenants {
            let app = &tenant.app;
            env.store.ensure_organization(&app.org, "Example").await?;
            for (id, name, mode) in &tenant.agents {
                let plain = new_agent(&app.org, id.clone(), env.agent.url())?;
                let new = NewAgent { name: (*name).to_owned(), mode: *mode, ..plain };
                env.store.put_agent(&new).await?;
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
                status: ConnectionStatus::Active,
                signing_secret: Secret::new(app.secret.clone())?,
                bot_token: Some(Secret::new(app.token.clone())?),
                bot_user: Some(app.bot_user.clone()),
                settings: ConnectionSettings {
                    answer_bots: tenant.answer_bots,
                    ..ConnectionSettings::default()
                },
            };
            env.store.create_connection(&new).await?;
            let there = Installation::new(&app.app, &app.team, &app.bot_user);
            let there = match &tenant.enterprise {
                Some(id) => there.of_enterprise(id),
                None => there,
            };
            env.slack.install(&app.token, there);
            let entry = env.store.directory_entry(app.connection).await?;
            let entry = entry.context("the directory entry of a new connection")?;
            revision = directory.project(app.connection, &entry).await?;
        }
        // The scenario is in the past: its apps were installed a day before it.
        sqlx::query("update connections set installed_at = to_timestamp($1)")
            .bind((webhooks::START - 86_400) as f64)
            .execute(&env.pool)
            .await?;
        for code in &self.codes {
            insert_code(env, code).await?;
        }
        Ok(directory.wait_until_applied(revision, TIMEOUT).await?)
    }

    /// Sends a stretch.
    async fn send(&self, env: &TestEnv, stretch: &[Exchange]) -> anyhow::Result<()> {
        let exchanges = stream::iter(stretch).map(|exchange| async move {
            for sent in exchange {
                self.send_one(env, sent).await?;
            }
            anyhow::Ok(())
        });
        exchanges.buffer_unordered(SENDERS).try_collect().await
    }

    async fn send_one(&self, env: &TestEnv, sent: &Sent) -> anyhow::Result<()> {
        let (app, mut webhook) = (&self.tenants[sent.tenant].app, sent.webhook.clone());
        let here = env.slack.response_origin();
        if let Some(body) = replace_origin(&webhook.body, ANY_SLACK, &here) {
            webhook.body = body;
        }
        env.slack.adopt(&webhook.body);
        let ingest = env.ingests.first().context("the environment has no ingest")?;
        let url = ingest.url(app);
        // Slack resends events after a minute, and a person retypes a command. Here the webhook is
        // resent at once, until it is accepted.
        let accepted = async || {
            let answer = env.slack.send(&url, &app.secret, &webhook).await.ok()?;
            (answer.status == 200 && !answer.body.contains("try again")).then_some(())
        };
        let what = format!("{} is accepted", webhook.what);
        try_eventually(&what, TIMEOUT, accepted).await.with_context(|| env.logs())?;
        if sent.again {
            let lost = Some((1, Reason::HttpTimeout));
            env.slack.attempt(&url, &app.secret, &webhook, lost).await;
        }
        Ok(())
    }
}

/// Inserts a code that is not random. The product creates random ones only.
async fn insert_code(env: &TestEnv, code: &Code) -> anyhow::Result<()> {
    let hash = code.code.parse::<LinkCode>().context("a code")?.hash();
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
    .execute(&env.pool)
    .await?;
    Ok(())
}
