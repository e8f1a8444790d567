//! Selection of dead letters, and of messages that Slack rejected.

use crate::domain::{ConnectionId, OrgId};

/// Filter of dead letters, or of messages that Slack rejected. `None` matches everything.
#[derive(Debug, Clone, Default)]
pub struct FailureFilter {
    /// Ids.
    pub ids: Option<Vec<i64>>,
    /// Connection.
    pub connection: Option<ConnectionId>,
    /// Substring of the reason or last error.
    pub text: Option<String>,
    /// Organization of the connection.
    pub org: Option<OrgId>,
    /// Exclusive upper bound of the ids: the start of a page.
    pub below: Option<i64>,
}
