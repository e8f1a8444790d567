//! Fixtures: webhooks, facts, and decisions as text.

use crate::routing::*;
use bytes::Bytes;
use serde_json::{Value, json};
use shared::{
    domain::{
        AgentPolicies, ConnectionId, ConnectionSettings, EditPolicy, HeaderToken, LinkBy,
        MediaType, OutgoingMessage, OverlapPolicy,
    },
    slack::BodyParts,
    store::{
        ApprovalResult, ApprovalUse, BacklogFacts, ConversationChange, ConversationFacts,
        QuestionFacts,
    },
    stream::{Conversation, Lane, Partition},
};
use std::sync::Arc;

/// Minute in which the webhooks were stored.
const MINUTE: i32 = 28_333_333;
const CONNECTION: &str = "00000000000000000000000000000007";

/// Body of a webhook, with its kind.
pub(super) type Body = (WebhookKind, MediaType, Vec<u8>);
/// Change of the facts or the settings.
pub(super) type Tweak = fn(&mut Setup);
pub(super) type Row<'a> = (Body, &'a [Tweak], &'a str);

pub(super) struct Setup {
    pub facts: Facts,
    pub named_agents: Vec<NamedAgent>,
    pub options: RoutingOptions,
}

/// Parses an id.
pub(super) fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("an id")
}

pub(super) fn check(rows: &[Row<'_>]) {
    for (body, tweaks, expected) in rows {
        let text = String::from_utf8_lossy(&body.2);
        assert_eq!(show(&decide_in(body, tweaks)), *expected, "{text}");
    }
}

pub(super) fn decide_in(body: &Body, tweaks: &[Tweak]) -> Decision {
    let setup = setup(tweaks);
    with_webhook(body, |w| {
        let decision = decide(w, &setup.facts, &setup.named_agents, &setup.options);
        limit_backlog(decision, w, &setup.facts)
    })
}

pub(super) fn with_webhook<T>(body: &Body, f: impl FnOnce(&Webhook<'_>) -> T) -> T {
    let connection: ConnectionId = id(CONNECTION);
    let envelope = Envelope {
        connection,
        partition: Partition::of(connection, None),
        kind: body.0,
        lane: Lane::of(connection, Conversation::WithoutChannel("")),
        dedup_key: DedupKey::event(connection, "Ev1"),
        received_at_ms: 1_700_000_000_123,
        media: body.1,
        signature: HeaderToken::new("v0=00").expect("a token"),
        timestamp: HeaderToken::new("1700000000").expect("a token"),
        retry: None,
        traceparent: None,
        reply: None,
        body: Bytes::copy_from_slice(&body.2),
    };
    let parts = BodyParts::split(body.1, &body.2);
    f(&Webhook { envelope: &envelope, inbound: parts.read() })
}

/// Returns an active connection of `acme` with bot `U0BOT`, whose agent `support` has mode `reply`.
pub(super) fn setup(tweaks: &[Tweak]) -> Setup {
    let connection = ConnectionFacts {
        id: id(CONNECTION),
        org: id("acme"),
        enterprise: None,
        team: Some(id("T0001TEAM")),
        preview_mode: false,
        status: ConnectionStatus::Active,
        bot_user: Some("U0BOT".into()),
        settings: ConnectionSettings::default(),
    };
    let agent = Some(agent("support", "Support", AgentMode::Reply));
    let conversation = ConversationFacts { agent: agent.clone(), linked_by: None, session: 1 };
    let connection = ConnectionState::Known(Arc::new(connection));
    let facts = Facts {
        connection,
        conversation,
        own_agent: agent,
        author: None,
        processed: false,
        trigger_processed: false,
        channel_known: false,
        is_admin: false,
        is_notice_due: false,
        questions: QuestionFacts { minute: MINUTE, ..QuestionFacts::default() },
        backlog: BacklogFacts::default(),
    };
    let options = RoutingOptions {
        slash_command: "/lobu".into(),
        own_handler: false,
        handler_max_per_user: 30,
    };
    let mut setup = Setup { facts, named_agents: Vec::new(), options };
    tweaks.iter().for_each(|tweak| tweak(&mut setup));
    setup
}

fn agent(agent: &str, name: &str, mode: AgentMode) -> AgentRef {
    let policies = AgentPolicies::default();
    let (org, id, name) = (id("acme"), id(agent), name.into());
    AgentRef { org, id, name, mode, max_per_user: 30, policies }
}

fn connection(setup: &mut Setup) -> &mut ConnectionFacts {
    match &mut setup.facts.connection {
        ConnectionState::Known(connection) => Arc::make_mut(connection),
        _ => panic!("not known"),
    }
}

fn policies(setup: &mut Setup) -> &mut AgentPolicies {
    &mut setup.facts.conversation.agent.as_mut().expect("an agent").policies
}

macro_rules! tweaks {
    ($($name:ident: |$setup:ident| $change:expr;)*) => {
        $(pub(super) fn $name($setup: &mut Setup) { $change; })*
    };
}
tweaks! {
    pending: |s| connection(s).status = ConnectionStatus::Pending;
    error: |s| connection(s).status = ConnectionStatus::Error;
    stopped: |s| connection(s).status = ConnectionStatus::Stopped;
    revoked: |s| connection(s).status = ConnectionStatus::Revoked;
    deleted: |s| s.facts.connection = ConnectionState::Deleted;
    unknown: |s| s.facts.connection = ConnectionState::Unknown;
    processed: |s| s.facts.processed = true;
    trigger_processed: |s| s.facts.trigger_processed = true;
    preview: |s| connection(s).preview_mode = true;
    no_team: |s| connection(s).team = None;
    no_bot: |s| connection(s).bot_user = None;
    other_bot: |s| connection(s).bot_user = Some("U0OTHER".into());
    org_wide: |s| {
        connection(s).team = None;
        connection(s).enterprise = Some(id("E0001ORG"))
    };
    organization: |s| connection(s).enterprise = Some(id("E1"));
    answer_bots: |s| connection(s).settings.answer_bots = true;
    named_oddly: |s| s.facts.conversation.agent.as_mut().expect("an agent").name = "<A&B>".into();
    by_binder: |s| connection(s).settings.link_by = LinkBy::Binder;
    by_admins: |s| connection(s).settings.link_by = LinkBy::Admins;
    admin: |s| s.facts.is_admin = true;
    channel_known: |s| s.facts.channel_known = true;
    no_welcome: |s| connection(s).settings.welcome = false;
    dm_only: |s| connection(s).settings.surfaces = vec![Surface::Dm];
    nowhere: |s| connection(s).settings.surfaces.clear();
    bound: |s| s.facts.conversation.linked_by = Some(id("U0002"));
    session_5: |s| s.facts.conversation.session = 5;
    own_handler: |s| s.options.own_handler = true;
    no_agent: |s| { s.facts.conversation.agent = None; s.facts.own_agent = None };
    forward: |s| {
        let app = Some(agent("support", "Support", AgentMode::Forward));
        s.facts.own_agent.clone_from(&app);
        s.facts.conversation.agent = app
    };
    asked_29: |s| s.facts.questions.asked = 29;
    asked_30: |s| s.facts.questions.asked = 30;
    rerun: |s| policies(s).edits = EditPolicy::Rerun;
    interrupt: |s| policies(s).overlap = OverlapPolicy::Interrupt;
    told: |s| s.facts.questions.is_told = true;
    full: |s| s.facts.backlog.is_full = true;
    ignores: |s| s.facts.backlog.ignores = true;
    circuit_open: |s| s.facts.is_notice_due = true;
    app_here: |s| s.facts.conversation.agent = Some(agent("app", "App", AgentMode::Forward));
    author: |s| s.facts.author = Some(agent("sales", "Sales", AgentMode::Reply));
    author_app: |s| s.facts.author = Some(agent("sales", "Sales", AgentMode::Forward));
    agents_acme: |s| s.named_agents.push(named("acme", "sales"));
    agents_all: |s| s.named_agents.extend([named("acme", "sales"), named("acme", "support")]);
    agents_both: |s| s.named_agents.extend([named("acme", "sales"), named("other", "sales")]);
    agents_odd: |s| {
        s.named_agents.push(NamedAgent { name: "<A&B>".into(), ..named("acme", "sales") })
    };
}

fn named(org: &str, agent: &str) -> NamedAgent {
    NamedAgent { org: id(org), agent: id(agent), name: agent.into() }
}

/// Returns a webhook of the table.
pub(super) fn fixture(name: &str) -> Body {
    let shape = super::shapes::all().into_iter().find(|shape| shape.name == name);
    body_of(&shape.unwrap_or_else(|| panic!("no row is called {name}")))
}

/// Returns the body of a webhook that Slack documents.
pub(super) fn body_of(shape: &super::shapes::Shape) -> Body {
    let (name, mut content) = (shape.name.as_str(), shape.content());
    if let Some(fields) = content.get("_form").and_then(Value::as_object) {
        let fields: Vec<(&str, &str)> =
            fields.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default())).collect();
        let (_, media, body) = form(&fields);
        let kind = if name == "ssl_check" { WebhookKind::Unknown } else { WebhookKind::Command };
        return (kind, media, body);
    }
    if let Some(interaction) = content.get_mut("_payload") {
        return payload(interaction.take());
    }
    let kind = if name == "url_verification" { WebhookKind::Unknown } else { WebhookKind::Event };
    (kind, MediaType::Json, content.to_string().into_bytes())
}

pub(super) fn form(fields: &[(&str, &str)]) -> Body {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    (WebhookKind::Command, MediaType::Form, body.into_bytes())
}

pub(super) fn payload(interaction: Value) -> Body {
    let kind = match interaction["type"].as_str() {
        Some("block_suggestion" | "dialog_suggestion") => WebhookKind::Options,
        Some(_) => WebhookKind::Interaction,
        None => WebhookKind::Unknown,
    };
    let (_, media, body) = form(&[("payload", &interaction.to_string())]);
    (kind, media, body)
}

pub(super) fn json_body(text: &str) -> Body {
    (WebhookKind::Unknown, MediaType::Json, text.into())
}

pub(super) fn event_body(event: Value) -> Body {
    let body = json!({
        "type": "event_callback", "event_id": "Ev1", "event_time": 1_700_000_001,
        "team_id": "T0001TEAM", "event": event,
    });
    (WebhookKind::Event, MediaType::Json, body.to_string().into_bytes())
}

/// Returns a message in channel `C1` with these fields changed.
pub(super) fn message_with(changes: Value) -> Body {
    let mut event = json!({
        "type": "message", "channel": "C1", "user": "U0001USER",
        "text": "hi", "ts": "1700000001.000100",
    });
    for (name, value) in changes.as_object().expect("an object") {
        event[name] = value.clone();
    }
    event_body(event)
}

pub(super) fn channel(text: &str) -> Body {
    message_with(json!({ "text": text, "channel_type": "channel" }))
}

pub(super) fn mention(text: &str) -> Body {
    message_with(json!({ "text": text, "type": "app_mention" }))
}

pub(super) fn im(text: &str) -> Body {
    message_with(json!({ "text": text, "channel": "D1", "channel_type": "im" }))
}

pub(super) fn slash(command: &str, text: &str) -> Body {
    slash_in("general", command, text)
}

/// Returns a slash command in a channel with this name in Slack.
pub(super) fn slash_in(channel_name: &str, command: &str, text: &str) -> Body {
    form(&[
        ("channel_name", channel_name),
        ("command", command),
        ("text", text),
        ("team_id", "T0001TEAM"),
        ("channel_id", "C0001CHAN"),
        ("user_id", "U0001USER"),
        ("response_url", "https://hooks.slack.com/commands/1234/5678"),
    ])
}

/// Returns a decision as one line.
pub(super) fn show(decision: &Decision) -> String {
    match decision {
        Decision::Ignore { reason, addressed } => {
            let addressed = if *addressed { ", addressed" } else { "" };
            format!("ignore {}{addressed}", reason.as_str())
        }
        Decision::DeadLetter { reason, error } => format!("dead letter: {reason}: {error}"),
        Decision::Overflow => format!("dead letter without bytes: {}", Decision::OVERFLOW),
        Decision::Apply(effects) => show_effects(effects),
    }
}

fn show_effects(effects: &Effects) -> String {
    let Effects {
        consume,
        decide,
        edit,
        changes,
        messages,
        delivery,
        question,
        trigger,
        processed_as,
    } = effects;
    let mut parts = Vec::new();
    parts.extend(
        consume
            .as_ref()
            .map(|c| format!("consume in {} {}/{} by {}", c.surface, c.team, c.channel, c.user)),
    );
    parts.extend(decide.as_ref().map(|click| {
        let ApprovalUse { option, channel, message_ts, team, user, .. } = click;
        let reply = show_messages(&(click.reply)(&ApprovalResult::NotAllowed));
        format!("option {option} on {channel}/{message_ts} by {team}/{user}: {reply}")
    }));
    parts.extend(edit.as_ref().map(|edit| format!("if {}/{} waits", edit.channel, edit.ts)));
    for change in changes {
        let action = match &change.action {
            ConversationChange::Bind { org, agent, .. } => format!(" to {org}/{agent}"),
            ConversationChange::AddFeedback { agent, value, .. } => format!(" {agent} {value}"),
            ConversationChange::Revoke { at, why, .. } => format!(" at {at}, {why}"),
            _ => String::new(),
        };
        let (yes, no) =
            (show_messages(&(change.reply)(true)), show_messages(&(change.reply)(false)));
        let reply = if yes.is_empty() { yes } else { format!(": {yes} / {no}") };
        parts.push(format!("change {}{action}{reply}", change.action.as_str()));
    }
    if !messages.is_empty() {
        parts.push(show_messages(messages));
    }
    parts.extend(delivery.as_ref().map(|d| {
        let priority =
            if d.priority == Priority::Interactive { "interactive" } else { "background" };
        let hops = if d.hops == 0 { String::new() } else { format!(", {} hops", d.hops) };
        format!("to {}/{} s{} {priority}{hops}", d.org, d.agent, d.session)
    }));
    parts.extend((*question == Some(QuestionEffect::Refused)).then(|| "refused".to_owned()));
    parts.extend(trigger.as_ref().map(|_| "trigger".to_owned()));
    format!("{}: {}", processed_as.as_str(), parts.join("; "))
}

fn show_messages(messages: &[OutgoingMessage]) -> String {
    let line = |m: &OutgoingMessage| {
        format!("{} {}", m.to.as_str(), m.message["text"].as_str().unwrap_or_default())
    };
    messages.iter().map(line).collect::<Vec<_>>().join(" + ")
}
