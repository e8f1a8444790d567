//! Lists. All have the same parts: a filter in the query, a bounded count, pages, an empty state,
//! and actions on selected rows or on all that match.

mod catalogue;
mod objects;
mod traffic;

pub use catalogue::ListKind;
pub use traffic::{failure_filter, lane_filter, organization, outcome_tone};

use super::{
    Console,
    actions::{self, Action},
    fields::Fields,
    session::Session,
    shell::{Failure, Shell, respond},
};
use crate::api::{Page, PageQuery, Problem};
use askama::Template;
use axum::{Router, extract::State, http::StatusCode, response::Response, routing::get};
use catalogue::{LISTS, List};
use std::sync::Arc;

/// Value of a column.
#[derive(Debug, Default, Clone)]
pub struct Cell {
    pub text: String,
    pub href: Option<String>,
    /// `good`, `warn`, `bad`, or none.
    pub tone: &'static str,
}

impl Cell {
    /// Creates a value without a link.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Creates a value that may be missing.
    pub fn optional(text: Option<impl Into<String>>) -> Self {
        text.map(Self::new).unwrap_or_default()
    }

    /// Creates a time, to the second.
    pub fn time(at: Option<&str>) -> Self {
        Self::optional(at.map(time_text))
    }

    /// Creates a value with a link.
    pub fn link(text: impl Into<String>, href: String) -> Self {
        Self { text: text.into(), href: Some(href), tone: "" }
    }

    /// Adds a tone.
    pub fn tone(self, tone: &'static str) -> Self {
        Self { tone, ..self }
    }
}

/// Formats an RFC 3339 time to the second.
pub fn time_text(at: &str) -> String {
    at.chars().take(19).map(|c| if c == 'T' { ' ' } else { c }).collect()
}

/// Row of a list.
#[derive(Debug, Default, Clone)]
pub struct Row {
    /// Id by which actions select the row.
    pub item: String,
    pub cells: Vec<Cell>,
    /// Names of the actions that the row allows.
    pub actions: Vec<&'static str>,
}

/// Link of a page.
pub struct Link {
    pub text: &'static str,
    pub href: String,
}

impl Row {
    fn labelled<'a>(&'a self, columns: &'a [&'static str]) -> Vec<(&'static str, &'a Cell)> {
        columns.iter().copied().zip(&self.cells).collect()
    }

    fn links(&self, back: &str) -> Vec<Link> {
        let link = |name: &&'static str| {
            let action = actions::find(name)?;
            Some(Link { text: action.label, href: action.url(&self.item, back) })
        };
        self.actions.iter().filter_map(link).collect()
    }
}

/// Page of a list.
pub struct Loaded {
    rows: Vec<Row>,
    cursor: Option<String>,
    /// Number of rows with their noun.
    count: String,
}

/// Creates a page from records, of which one more than `limit` was queried.
pub fn page_of<R, const N: usize>(
    records: Vec<R>,
    limit: i64,
    key: impl Fn(&R) -> [String; N],
    row: impl Fn(R) -> Row,
) -> (Vec<Row>, Option<String>) {
    let page: Page<R> = Page::new(records, limit, key);
    (page.items.into_iter().map(row).collect(), page.next)
}

/// Field of a filter with its value.
struct FilterField {
    name: &'static str,
    label: &'static str,
    hint: &'static str,
    value: String,
}

/// Action on several rows.
struct Bulk {
    name: &'static str,
    label: &'static str,
    /// Path of the confirmation for all that match.
    all: String,
}

#[derive(Template)]
#[template(path = "console/list.html")]
struct ListPage {
    shell: Shell,
    path: &'static str,
    /// Path of this page.
    here: String,
    first: String,
    is_first: bool,
    done: Option<String>,
    filters: Vec<FilterField>,
    count: String,
    columns: &'static [&'static str],
    rows: Vec<Row>,
    has_row_actions: bool,
    is_operator: bool,
    bulk: Vec<Bulk>,
    empty: &'static str,
    next: Option<String>,
}

/// Adds the routes of all lists.
pub fn add_routes(mut router: Router<Arc<Console>>) -> Router<Arc<Console>> {
    for list in LISTS {
        let handler =
            move |State(console): State<Arc<Console>>, session: Session, fields: Fields| {
                show(console, session, fields, list)
            };
        router = router.route(list.path, get(handler));
    }
    router
}

async fn show(
    console: Arc<Console>,
    session: Session,
    fields: Fields,
    list: &'static List,
) -> Result<Response, Failure> {
    if list.kind == ListKind::Webhooks
        && let Some(reference) = fields.get("q")
    {
        return super::webhooks::find(&console, session, reference, &fields).await;
    }
    let loaded = load(&console, &session, &fields, list.kind).await?;
    Ok(respond(StatusCode::OK, &page(session, &fields, list, loaded)))
}

/// Loads a page of a list.
async fn load(
    console: &Console,
    session: &Session,
    fields: &Fields,
    kind: ListKind,
) -> Result<Loaded, Problem> {
    let (store, caller) = (&console.store, &session.caller);
    match kind {
        ListKind::Webhooks => traffic::webhooks(store, caller, fields).await,
        ListKind::Conversations => traffic::conversations(store, caller, fields).await,
        ListKind::DeadLetters => traffic::dead_letters(store, caller, fields).await,
        ListKind::OutboxFailures => traffic::outbox_failures(store, caller, fields).await,
        ListKind::Usage => traffic::usage(store, caller, fields).await,
        ListKind::Agents => objects::agents(store, caller, fields).await,
        ListKind::Connections => objects::connections(store, caller, fields).await,
        ListKind::Apps => objects::apps(store, caller, fields).await,
        ListKind::LinkCodes => objects::link_codes(store, caller, fields).await,
        ListKind::Bindings => objects::bindings(store, caller, fields).await,
        ListKind::AuditLog => objects::audit_log(store, caller, fields).await,
    }
}

fn page(session: Session, fields: &Fields, list: &'static List, loaded: Loaded) -> ListPage {
    let filter = fields.without(&["cursor", "done", "count"]);
    let is_operator = session.is_operator();
    let here = fields.without(&["done", "count"]).url(list.path);
    let bulk = |action: &'static Action| Bulk {
        name: action.name,
        label: action.label,
        all: filter.clone().with("all", "1").with("back", &here).url(&action.path()),
    };
    let bulk: Vec<Bulk> =
        if is_operator { actions::of_list(list.kind).map(bulk).collect() } else { Vec::new() };
    let next = loaded.cursor.map(|cursor| filter.clone().with("cursor", cursor).url(list.path));
    let field = |(name, label, hint): &(&'static str, &'static str, &'static str)| FilterField {
        name,
        label,
        hint,
        value: fields.get(name).unwrap_or_default().to_owned(),
    };
    ListPage {
        shell: Shell::of(&session, list.title, list.path),
        path: list.path,
        first: filter.url(list.path),
        is_first: fields.get("cursor").is_none(),
        done: actions::done_text(fields),
        filters: list.filters.iter().map(field).collect(),
        count: loaded.count,
        columns: list.columns,
        has_row_actions: loaded.rows.iter().any(|row| !row.actions.is_empty()),
        rows: loaded.rows,
        is_operator,
        bulk,
        empty: list.empty,
        next,
        here,
    }
}

/// Returns the maximum number of rows of a page.
fn limit(page: &PageQuery) -> Result<i64, Problem> {
    page.limit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortens_times() {
        assert_eq!(time_text("2026-01-31T12:00:01.123+00:00"), "2026-01-31 12:00:01");
    }
}
