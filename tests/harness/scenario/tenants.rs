//! Tenants of the scenario: connections of several kinds, their agents and link codes, generated
//! from the seed.
//!
//! Most connections are a workspace whose agent answers everywhere. Some agents answer only where
//! they are bound; some connections are preview connections, some have apps in mode `forward`, and
//! some are installed for a whole organization on Grid.

use crate::{
    fault::Random,
    test_env::{App, agent_id},
};
use anyhow::Context;
use shared::domain::{AgentId, AgentMode, ConnectionId, OrgId, Surface};

/// Number of connections.
const TENANTS: usize = 50;
/// Number of active people in a workspace.
pub(super) const PEOPLE: usize = 12;
pub(super) const CHANNELS: usize = 5;

/// A connection with its people, channels and agents.
#[derive(Debug, Clone)]
pub(super) struct Tenant {
    pub number: usize,
    pub app: App,
    /// Id, name and mode of each agent.
    pub agents: Vec<(AgentId, &'static str, AgentMode)>,
    /// Agent of conversations without a binding, if there is one.
    pub own: Option<AgentId>,
    pub preview: bool,
    pub answer_bots: bool,
    pub enterprise: Option<String>,
    /// Factor for the number of conversations.
    pub busy: usize,
}

/// A link code.
#[derive(Debug, Clone)]
pub(super) struct Code {
    pub code: String,
    pub org: OrgId,
    pub agent: AgentId,
    pub surfaces: Vec<Surface>,
    pub connection: Option<ConnectionId>,
    pub expired: bool,
}

impl Tenant {
    pub fn channel(&self, n: usize) -> String {
        format!("C{:03}{n:04}", self.number)
    }

    pub fn user(&self, n: usize) -> String {
        format!("U{:03}{n:04}", self.number)
    }

    /// Returns the direct message channel of a user with the bot.
    pub fn direct(&self, user: usize) -> String {
        format!("D{:03}{user:04}", self.number)
    }

    pub fn mention(&self) -> String {
        format!("<@{}>", self.app.bot_user)
    }

    /// Returns a code for this tenant's agent.
    pub fn code(&self, random: &mut Random, surfaces: &[Surface]) -> Code {
        Code {
            code: code(random),
            org: self.app.org.clone(),
            agent: agent_id(),
            surfaces: surfaces.to_vec(),
            connection: (!self.preview).then_some(self.app.connection),
            expired: false,
        }
    }
}

/// Generates all tenants.
pub(super) fn generate_all(random: &mut Random) -> anyhow::Result<Vec<Tenant>> {
    (0..TENANTS).map(|n| generate_one(random, n)).collect()
}

fn generate_one(random: &mut Random, number: usize) -> anyhow::Result<Tenant> {
    let (preview, forwards, grid) =
        (matches!(number, 3 | 23 | 43), matches!(number, 7 | 17 | 27), matches!(number, 11 | 31));
    let mode = if forwards { AgentMode::Forward } else { AgentMode::Reply };
    let mut agents = vec![(agent_id(), "Sample agent", mode)];
    if preview {
        agents.push(("helper".parse()?, "Helper", AgentMode::Reply));
        agents.push(("poet".parse()?, "Poet", AgentMode::Reply));
    }
    // Every fifth agent answers only where it is bound, as in preview connections.
    let own = (!preview && number % 5 != 4).then(agent_id);
    let app = App {
        connection: hex(random).parse().context("a generated connection id")?,
        org: format!("day-{number}").parse()?,
        secret: hex(random),
        token: format!("xoxb-{}", hex(random)),
        app: format!("A{number:03}DAY"),
        team: format!("T{number:03}DAY"),
        bot_user: format!("UBOT{number:03}"),
    };
    let enterprise = grid.then(|| format!("E{number:03}DAY"));
    let busy = if number < 5 { 4 } else { 1 };
    let answer_bots = number % 16 == 1;
    Ok(Tenant { number, app, agents, own, preview, answer_bots, enterprise, busy })
}

fn hex(random: &mut Random) -> String {
    format!("{:016x}{:016x}", random.number(), random.number())
}

/// Returns the text of a code.
pub(super) fn code(random: &mut Random) -> String {
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let digits: String = (0..12).map(|_| char::from(*random.pick(DIGITS))).collect();
    format!("{}-{}-{}", &digits[..4], &digits[4..8], &digits[8..])
}
