//! Application of a file of declarations, as by `tidegate apply`.

use super::{Problem, Shared, caller::Owner, extract::Json, problem::Failures};
use axum::extract::State;
use serde::{Deserialize, Serialize};
use shared::{
    operations::{FileProblem, read_declarations},
    store::{ApplyMode, PlanSummary, StepSummary},
};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Path of the route. Its bodies may be larger than those of other routes.
pub const PATH: &str = "/v1/declarations";
/// Maximum size of a body in bytes: several thousand connections.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// File to apply.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeclarationsInput {
    /// Organizations, agents, members, apps and connections, in the TOML form of `tidegate apply`.
    file: String,
    /// Secrets by the references in the file, such as `env:HELPER_SECRET`.
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    /// Delete objects that the file does not declare, connections with their data.
    #[serde(default)]
    prune: bool,
    /// Allow `prune` to delete. Without it, a plan that deletes is returned and not applied.
    #[serde(default)]
    confirmed: bool,
    /// Only return what would change.
    #[serde(default)]
    dry_run: bool,
}

/// Changes that were applied, or would be.
#[derive(Serialize, ToSchema)]
pub struct AppliedDeclarations {
    /// False after a dry run, and if the plan deletes something and `confirmed` is missing.
    applied: bool,
    steps: Vec<DeclarationStep>,
    /// Objects that the file does not declare and that are kept.
    undeclared: Vec<String>,
    /// Number of declared objects without a difference.
    unchanged: u64,
    /// Ids of all declared connections.
    connections: Vec<String>,
}

/// Creation, change or deletion of one object.
#[derive(Serialize, ToSchema)]
pub struct DeclarationStep {
    /// `create`, `change` or `delete`.
    action: String,
    /// Object, such as `agent acme/helper`.
    what: String,
    /// Changed fields with their values, such as `mode: reply → forward`. Without secrets.
    fields: Vec<String>,
}

impl From<StepSummary> for DeclarationStep {
    fn from(step: StepSummary) -> Self {
        Self { action: step.action.as_str().to_owned(), what: step.what, fields: step.fields }
    }
}

/// Apply a file, completely or not at all. Requires an API key for all organizations. Problems in
/// the file are returned with status 409, each with its line in `errors`.
#[utoipa::path(
    post, path = "/v1/declarations", operation_id = "applyDeclarations", tag = "declarations",
    request_body = DeclarationsInput,
    responses((status = 200, body = AppliedDeclarations), Failures)
)]
pub async fn apply(
    State(api): Shared,
    Owner(caller): Owner,
    Json(input): Json<DeclarationsInput>,
) -> Result<Json<AppliedDeclarations>, Problem> {
    if caller.org.is_some() {
        return Err(Problem::forbidden("the API key must be for all organizations"));
    }
    let file = read_declarations(&input.file, &mut |reference| {
        let secret = input.secrets.get(reference).cloned();
        secret.ok_or_else(|| format!("no secret {reference} in the request; add it to secrets"))
    });
    let file = file.map_err(rejected)?;
    let DeclarationsInput { prune, confirmed, dry_run, .. } = input;
    let mode = ApplyMode { prune, confirmed, dry_run };
    let operations = api.operations(&caller);
    let applied = operations.apply_declarations(&api.js, &file.declared, mode, |_| ()).await?;
    let plan = applied.map_err(|conflicts| rejected(file.locate(conflicts)))?;
    let PlanSummary { applied, steps, undeclared, unchanged, connections } = (&plan).into();
    Ok(Json(AppliedDeclarations {
        applied,
        steps: steps.into_iter().map(Into::into).collect(),
        undeclared,
        unchanged,
        connections: connections.iter().map(ToString::to_string).collect(),
    }))
}

fn rejected(problems: Vec<FileProblem>) -> Problem {
    Problem::conflict("the file has problems; nothing was applied").with_errors(problems)
}
