//! `tidegate erase`: erases a person or an organization from Postgres and the stream.

use crate::{
    output,
    settings::{NatsSettings, StoreSettings, TokenKeyring},
};
use anyhow::{bail, ensure};
use shared::domain::{OrgId, TeamId, UserId};
use std::str::FromStr;

/// Commands of `tidegate erase`.
#[derive(Debug, clap::Subcommand)]
pub enum Erase {
    /// Erase a person of a workspace. Exits 1 while data of the person is still being processed.
    Person(Person),
    /// Erase an organization with all its data. Exits 1 while its webhooks are still being processed.
    Organization(Organization),
}

/// Slack user argument: `<team>/<user>`.
#[derive(Debug, Clone)]
struct SlackPerson {
    team: TeamId,
    user: UserId,
}

impl FromStr for SlackPerson {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (team, user) = text.split_once('/').ok_or("expected <team>/<user>")?;
        let team = team.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { team, user: user.parse().map_err(|error| format!("{error}"))? })
    }
}

/// Arguments of `tidegate erase person`.
#[derive(Debug, clap::Args)]
pub struct Person {
    /// Slack user, as <team>/<user>.
    person: SlackPerson,
    /// Confirm the erasure. Without this flag nothing is changed.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    tokens: TokenKeyring,
    #[command(flatten)]
    nats: NatsSettings,
}

/// Arguments of `tidegate erase organization`.
#[derive(Debug, clap::Args)]
pub struct Organization {
    /// Organization id.
    organization: OrgId,
    /// Confirm the erasure. Without this flag nothing is changed.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
}

impl Erase {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Erase::Person(person) => person.run().await,
            Erase::Organization(organization) => organization.run().await,
        }
    }
}

impl Person {
    async fn run(self) -> anyhow::Result<()> {
        let SlackPerson { team, user } = &self.person;
        ensure!(self.yes, "would erase person {team}/{user}; pass --yes to do it");
        // Messages to Slack are opened to find those that name the person.
        let store = self.store.open_with(self.tokens.rings())?;
        let js = self.nats.jetstream().await?;
        let erased = self.store.operations(&store)?.erase_person(&js, team, user).await?;
        if self.json {
            output::print_json(&erased)?;
        } else {
            output::print_line(&format!("rows: {}", erased.rows.rows))?;
            output::print_line(&format!("webhooks in the stream: {}", erased.webhooks))?;
        }
        if erased.is_complete() {
            return Ok(());
        }
        bail!(
            "open deliveries: {}, open messages: {}, open webhooks: {}; cancel the deliveries with \
             tidegate deliveries cancel, and run this command again",
            erased.rows.open_deliveries,
            erased.rows.open_messages,
            erased.open_webhooks
        )
    }
}

impl Organization {
    async fn run(self) -> anyhow::Result<()> {
        let (id, store) = (&self.organization, self.store.open()?);
        if !self.yes {
            let connections = store.organization_connections(id).await?.len();
            bail!(
                "would erase organization {id} (connections: {connections}); pass --yes to do it"
            );
        }
        let js = self.nats.jetstream().await?;
        let erased = self.store.operations(&store)?.erase_organization(&js, id).await?;
        let connections = erased.connections;
        ensure!(
            erased.open_webhooks == 0,
            "connections erased: {connections}, open webhooks of others: {}; workers complete the \
             erasure once they have processed these",
            erased.open_webhooks
        );
        Ok(output::print_line(&format!("organization {id} erased, connections: {connections}"))?)
    }
}
