//! Arguments and results of routes for dead letters and outbox failures.

use super::{
    Problem,
    caller::org_filter,
    extract::integers,
    page::{MAX_SELECTED, PageQuery},
};
use serde::{Deserialize, Serialize};
use shared::{
    domain::{ConnectionId, OrgId},
    store::{ApiCaller, FailureFilter},
};
use utoipa::{IntoParams, ToSchema};

/// Filter of a list of failures.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only list failures of connections of this organization.
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    organization: Option<OrgId>,
    /// Only list failures of this connection.
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    connection: Option<ConnectionId>,
    /// Only list failures whose reason or error contains this text.
    #[param(pattern = r"^[^\x00]*$")]
    text: Option<String>,
}

impl Filter {
    /// Returns the checked filter of a page.
    pub fn checked(self, caller: &ApiCaller, page: &PageQuery) -> Result<FailureFilter, Problem> {
        Ok(FailureFilter {
            ids: None,
            connection: self.connection,
            text: self.text,
            org: org_filter(caller, self.organization)?,
            below: page.after_id()?,
        })
    }
}

/// Selection of failures.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailureSelection {
    /// Ids.
    #[serde(deserialize_with = "integers")]
    #[schema(min_items = 1, max_items = 1000)]
    ids: Vec<i64>,
}

impl FailureSelection {
    /// Returns the checked filter of an operation.
    pub fn checked(self) -> Result<FailureFilter, Problem> {
        match self.ids.len() {
            1..=MAX_SELECTED => Ok(FailureFilter { ids: Some(self.ids), ..Default::default() }),
            _ => Err(Problem::invalid(format!("ids must have 1 to {MAX_SELECTED} items"))),
        }
    }
}

/// Changed objects.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangedIds {
    /// Ids of the changed objects. Other selected objects did not exist or could not be changed.
    pub ids: Vec<i64>,
}
