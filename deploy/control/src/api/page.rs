//! Pages of lists.
//!
//! A cursor is the key of the last row, so that inserted or deleted rows do not shift a page.

use super::Problem;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::{IntoParams, ToSchema};

/// Default number of items of a page.
const DEFAULT_ITEMS: u16 = 50;
/// Maximum items of a page.
pub const MAX_ITEMS: u16 = 200;
/// Maximum number of ids in a request.
pub const MAX_SELECTED: usize = 1_000;

/// Position and size of a page.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// `next` of the previous page.
    #[param(pattern = "^[A-Za-z0-9_-]*$")]
    pub cursor: Option<String>,
    /// Maximum number of items.
    #[param(minimum = 1, maximum = 200)]
    pub limit: Option<u16>,
}

impl PageQuery {
    /// Returns the maximum number of items.
    pub fn limit(&self) -> Result<i64, Problem> {
        match self.limit.unwrap_or(DEFAULT_ITEMS) {
            limit @ 1..=MAX_ITEMS => Ok(i64::from(limit)),
            _ => Err(Problem::bad_request(format!("limit must be 1 to {MAX_ITEMS}"))),
        }
    }

    /// Returns the key after which the page begins.
    pub fn after<const N: usize>(&self) -> Result<Option<[String; N]>, Problem> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let malformed = unknown_cursor;
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| malformed())?;
        let parts: Vec<String> = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
        if parts.iter().any(|part| part.contains('\0')) {
            return Err(malformed());
        }
        parts.try_into().map(Some).map_err(|_| malformed())
    }

    /// Returns the time and id after which the page begins.
    pub fn after_time(&self) -> Result<Option<[String; 2]>, Problem> {
        let after = self.after::<2>()?;
        let is_time = |at: &str| OffsetDateTime::parse(at, &Rfc3339).is_ok();
        match after {
            Some([at, _]) if !is_time(&at) => Err(unknown_cursor()),
            after => Ok(after),
        }
    }

    /// Returns the id after which the page begins.
    pub fn after_id(&self) -> Result<Option<i64>, Problem> {
        let malformed = |_| unknown_cursor();
        self.after()?.map(|[id]: [String; 1]| id.parse().map_err(malformed)).transpose()
    }
}

/// Returns the error for a cursor that no page returned.
pub fn unknown_cursor() -> Problem {
    Problem::not_found("cursor is unknown; use next of the previous page")
}

/// Page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// Items, in the order of the list.
    pub items: Vec<T>,
    /// Cursor of the next page. Null after the last.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// Creates a page from rows, of which one more than `limit` was queried.
    pub fn new<R, const N: usize>(
        mut rows: Vec<R>,
        limit: i64,
        key: impl Fn(&R) -> [String; N],
    ) -> Self
    where
        T: From<R>,
    {
        let has_more = rows.len() as i64 > limit;
        rows.truncate(usize::try_from(limit).unwrap_or_default());
        let next = rows.last().filter(|_| has_more).map(|last| {
            let parts = serde_json::json!(key(last).as_slice());
            URL_SAFE_NO_PAD.encode(parts.to_string())
        });
        Self { items: rows.into_iter().map(T::from).collect(), next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continues_after_last_item() {
        let page: Page<i64> = Page::new(vec![1, 2, 3], 2, |n: &i64| [n.to_string()]);
        assert_eq!(page.items, [1, 2]);
        let query = PageQuery { cursor: page.next, limit: None };
        assert_eq!(query.after_id().expect("a cursor"), Some(2));
        let last: Page<i64> = Page::new(vec![3], 2, |n: &i64| [n.to_string()]);
        assert_eq!((last.items, last.next), (vec![3], None));
    }

    #[test]
    fn rejects_foreign_cursors() {
        for cursor in ["", "x", "!!", "WyJhIiwiYiJd", "WzFd"] {
            let query = PageQuery { cursor: Some(cursor.into()), limit: None };
            assert!(query.after_id().is_err(), "{cursor}");
        }
        for limit in [0, 201, u16::MAX] {
            let query = PageQuery { cursor: None, limit: Some(limit) };
            assert!(query.limit().is_err(), "{limit}");
        }
    }
}
