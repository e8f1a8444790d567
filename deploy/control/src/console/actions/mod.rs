//! Actions on rows of a list: a confirmation with the number of affected objects, then the
//! operation, then the list again.
//!
//! An action affects the selected items, or all that match the filter of the list. Failures that
//! were added after the confirmation are left out.

mod change;

use super::{
    Console,
    fields::Fields,
    lists::{ListKind, failure_filter, lane_filter, organization, time_text},
    session::{Form, Session, safe_path},
    shell::{Failure, Shell, respond},
};
use crate::api::Problem;
use askama::Template;
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use shared::store::ApiCaller;
use std::sync::Arc;

/// Maximum selected items, and maximum objects of "all that match" that are changed one by one.
const MAX_ITEMS: usize = 200;
/// Maximum items that a confirmation shows.
const SHOWN_ITEMS: usize = 20;

/// Operation of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Redrive,
    DeleteDeadLetters,
    Resend,
    DeleteFailures,
    Retry,
    Skip,
    Cancel,
    CancelAll,
    PauseAgent(bool),
    Enable(bool),
    PauseSending(bool),
    Revoke,
    Unbind,
}

/// Action on rows of a list.
pub struct Action {
    /// Name in paths.
    pub name: &'static str,
    /// Text of buttons.
    pub label: &'static str,
    list: ListKind,
    operation: Operation,
    /// Effect, shown on the confirmation.
    effect: &'static str,
    /// Result, shown after the number of changed objects.
    done: &'static str,
    /// True if the action can't be reversed.
    is_final: bool,
    /// True if the action is offered for several rows.
    is_bulk: bool,
}

macro_rules! actions {
    ($($name:literal, $label:literal, $list:ident, $operation:expr, $is_final:literal, $is_bulk:literal,
       $effect:literal, $done:literal;)*) => {
        &[$(Action {
            name: $name, label: $label, list: ListKind::$list, operation: $operation, effect: $effect,
            done: $done, is_final: $is_final, is_bulk: $is_bulk,
        },)*]
    };
}

static ACTIONS: &[Action] = actions! {
    "redrive", "Redrive", DeadLetters, Operation::Redrive, false, true,
        "Dead letters are processed again, after later webhooks of their conversations. Those \
         without a body are left out.", "dead letters redriven";
    "delete-dead-letters", "Delete", DeadLetters, Operation::DeleteDeadLetters, true, true,
        "Dead letters are deleted permanently. Their webhooks are never processed.",
        "dead letters deleted";
    "resend", "Send again", OutboxFailures, Operation::Resend, false, true,
        "Messages are sent again, after the pending messages of their conversations.",
        "messages enqueued";
    "delete-failures", "Delete", OutboxFailures, Operation::DeleteFailures, true, true,
        "Messages are deleted permanently and never sent.", "messages deleted";
    "retry", "Retry now", Conversations, Operation::Retry, false, true,
        "The first delivery of each conversation is attempted now, without its backoff.",
        "conversations made due";
    "skip", "Skip", Conversations, Operation::Skip, true, true,
        "The first delivery of each conversation ends without an answer and without a dead letter, \
         unless it is running.", "deliveries skipped";
    "cancel", "Cancel", Conversations, Operation::Cancel, true, true,
        "The first delivery of each conversation ends, even if it is running.",
        "deliveries cancelled";
    "cancel-all", "Cancel whole conversation", Conversations, Operation::CancelAll, true, false,
        "All open deliveries of each conversation end, even if they are running.",
        "deliveries cancelled";
    "pause-agent", "Pause", Agents, Operation::PauseAgent(true), false, true,
        "No attempt begins. Deliveries wait and do not expire.", "agents paused";
    "resume-agent", "Resume", Agents, Operation::PauseAgent(false), false, true,
        "Attempts resume.", "agents resumed";
    "disable", "Disable", Connections, Operation::Enable(false), false, true,
        "Ingest no longer stores webhooks of the connection, and Slack does not resend them.",
        "connections disabled";
    "enable", "Enable", Connections, Operation::Enable(true), false, true,
        "Ingest stores webhooks of the connection.", "connections enabled";
    "pause-sending", "Pause sending", Connections, Operation::PauseSending(true), false, true,
        "Nothing is sent to Slack. Messages wait and do not expire.", "connections changed";
    "resume-sending", "Resume sending", Connections, Operation::PauseSending(false), false, true,
        "Waiting messages are sent to Slack.", "connections changed";
    "revoke", "Revoke", LinkCodes, Operation::Revoke, true, false,
        "The link code can no longer be used.", "link codes revoked";
    "unbind", "Unbind", Bindings, Operation::Unbind, true, false,
        "The agent no longer answers in the channel. No message is posted.", "bindings removed";
};

impl Action {
    /// Returns the path of the confirmation.
    pub fn path(&self) -> String {
        format!("/actions/{}", self.name)
    }

    /// Returns the path of the confirmation for one item.
    pub fn url(&self, item: &str, back: &str) -> String {
        Fields::default().with("item", item).with("back", back).url(&self.path())
    }
}

/// Returns the action with a name.
pub fn find(name: &str) -> Option<&'static Action> {
    ACTIONS.iter().find(|action| action.name == name)
}

/// Returns the actions that a list offers for several rows.
pub fn of_list(list: ListKind) -> impl Iterator<Item = &'static Action> {
    ACTIONS.iter().filter(move |action| action.list == list && action.is_bulk)
}

/// Returns the result of an action, from the query of the page after it.
pub fn done_text(fields: &Fields) -> Option<String> {
    let action = find(fields.get("done")?)?;
    let count: u64 = fields.get("count")?.parse().ok()?;
    Some(format!("{count} {}.", action.done))
}

/// Objects of an action.
enum Selection {
    /// Selected items.
    Items(Vec<String>),
    /// Objects that match the filter of the list.
    Matching(Fields),
}

impl Selection {
    fn of(fields: &Fields) -> Result<Self, Problem> {
        if fields.get("all").is_some() {
            let filter =
                fields.without(&["all", "back", "done", "count", "below", "cursor", "item"]);
            return Ok(Self::Matching(filter));
        }
        match fields.all("item") {
            items if items.is_empty() => Err(Problem::bad_request("nothing is selected")),
            items if items.len() > MAX_ITEMS => {
                Err(Problem::bad_request(format!("more than {MAX_ITEMS} rows are selected")))
            }
            items => Ok(Self::Items(items)),
        }
    }
}

#[derive(Template)]
#[template(path = "console/confirm.html")]
struct ConfirmPage {
    shell: Shell,
    action: &'static str,
    label: &'static str,
    effect: &'static str,
    is_final: bool,
    is_empty: bool,
    count: String,
    items: Vec<String>,
    fields: Vec<(String, String)>,
    token: String,
    back: String,
}

fn action_of(name: &str) -> Result<&'static Action, Problem> {
    find(name).ok_or_else(|| Problem::not_found("the action does not exist"))
}

/// Returns the confirmation of an action, with the number of affected objects.
pub async fn confirm(
    State(console): State<Arc<Console>>,
    session: Session,
    Path(name): Path<String>,
    fields: Fields,
) -> Result<Response, Failure> {
    session.require_operator()?;
    let (action, selection) = (action_of(&name)?, Selection::of(&fields)?);
    let mut sent = fields.without(&["cursor", "done", "count", "below"]);
    let (count, is_empty, items) = match selection {
        Selection::Items(mut items) => {
            let count = format!("{} selected", items.len());
            items.truncate(SHOWN_ITEMS);
            (count, false, items)
        }
        Selection::Matching(filter) => {
            let (count, is_empty, newest) =
                count(&console, &session.caller, action, &filter).await?;
            if let Some(newest) = newest {
                sent = sent.with("below", newest.saturating_add(1).to_string());
            }
            let at = time_text(&console.store.now().await?.to_string());
            (format!("{count} that match, counted at {at}"), is_empty, Vec::new())
        }
    };
    let page = ConfirmPage {
        shell: Shell::of(&session, format!("{}?", action.label), ""),
        action: action.name,
        label: action.label,
        effect: action.effect,
        is_final: action.is_final,
        is_empty,
        count,
        items,
        fields: sent.pairs().to_vec(),
        token: session.form_token(),
        back: safe_path(fields.get("back")).to_owned(),
    };
    Ok(respond(StatusCode::OK, &page))
}

/// Counts the objects that match a filter. Returns the count, whether it is zero, and the newest id
/// of failures.
async fn count(
    console: &Console,
    caller: &ApiCaller,
    action: &Action,
    filter: &Fields,
) -> Result<(String, bool, Option<i64>), Problem> {
    let store = &console.store;
    let (count, newest) = match action.list {
        ListKind::DeadLetters => {
            let found = store.count_dead_letters_bounded(&failure_filter(caller, filter)?).await?;
            (found.0, Some(found.1))
        }
        ListKind::OutboxFailures => {
            let found =
                store.count_outbox_failures_bounded(&failure_filter(caller, filter)?).await?;
            (found.0, Some(found.1))
        }
        ListKind::Conversations => {
            (store.count_lanes_bounded(&lane_filter(caller, filter)?).await?, None)
        }
        _ => {
            let items = matching_items(console, caller, action, filter).await?;
            return Ok((items.len().to_string(), items.is_empty(), None));
        }
    };
    Ok((count.to_string(), count.is_zero(), newest))
}

/// Returns the matching objects, for actions that change objects one by one.
async fn matching_items(
    console: &Console,
    caller: &ApiCaller,
    action: &Action,
    filter: &Fields,
) -> Result<Vec<String>, Problem> {
    let (org, limit) = (organization(caller, filter)?, MAX_ITEMS as i64 + 1);
    let items: Vec<String> = match action.list {
        ListKind::Agents => {
            let found = console.store.agents_page(org.as_ref(), None, limit).await?;
            found.into_iter().map(|agent| format!("{}/{}", agent.organization, agent.id)).collect()
        }
        ListKind::Connections => {
            let found = console.store.connections_page(org.as_ref(), None, limit).await?;
            found.into_iter().map(|connection| connection.id.to_string()).collect()
        }
        _ => return Err(Problem::bad_request("the action is available for selected rows only")),
    };
    match items.len() {
        0..=MAX_ITEMS => Ok(items),
        _ => Err(Problem::conflict(format!("more than {MAX_ITEMS} match; filter by organization"))),
    }
}

/// Performs an action, and redirects to the list.
pub async fn perform(
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let Form { session, fields } = form;
    session.require_operator()?;
    let action = action_of(&name)?;
    let operations = console.operations(&session.caller);
    let count = match Selection::of(&fields)? {
        Selection::Items(items) => {
            change::change_items(&console, &operations, action, &items).await?
        }
        Selection::Matching(filter) => {
            let below = fields.parsed("below")?;
            change::change_matching(&console, &session.caller, action, &filter, below).await?
        }
    };
    let (path, query) = match safe_path(fields.get("back")).split_once('?') {
        Some((path, query)) => (path.to_owned(), Fields::parse(query.as_bytes())?),
        None => (safe_path(fields.get("back")).to_owned(), Fields::default()),
    };
    let query = query.without(&["done", "count"]).with("done", action.name);
    Ok(Redirect::to(&query.with("count", count.to_string()).url(&path)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_each_action_once() {
        for action in ACTIONS {
            assert_eq!(ACTIONS.iter().filter(|other| other.name == action.name).count(), 1);
        }
    }

    #[test]
    fn selects_items_or_all() {
        let fields = Fields::parse(b"item=1&item=2&back=/x").expect("fields");
        let Ok(Selection::Items(items)) = Selection::of(&fields) else { panic!("items") };
        assert_eq!(items, ["1", "2"]);
        let fields = Fields::parse(b"all=1&text=t&below=9&item=1&back=/x").expect("fields");
        let Ok(Selection::Matching(filter)) = Selection::of(&fields) else { panic!("all") };
        assert_eq!(filter.pairs(), [("text".to_owned(), "t".to_owned())]);
        assert!(Selection::of(&Fields::default()).is_err());
    }
}
