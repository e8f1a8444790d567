//! Execution of actions, with the operations of the API and the command line.

use super::{Action, Operation, matching_items};
use crate::{
    api::Problem,
    console::{
        Console,
        fields::Fields,
        lists::{ListKind, failure_filter, lane_filter},
        shell::Failure,
    },
};
use shared::{
    domain::{AgentId, ConnectionId, OrgId},
    operations::Operations,
    store::{ApiCaller, ConversationKey, DeliveryFilter, FailureFilter},
    stream::Lane,
};

/// Changes all objects that match a filter. Returns their number.
pub async fn change_matching(
    console: &Console,
    caller: &ApiCaller,
    action: &Action,
    filter: &Fields,
    below: Option<i64>,
) -> Result<u64, Failure> {
    let operations = console.operations(caller);
    Ok(match action.list {
        ListKind::DeadLetters | ListKind::OutboxFailures => {
            let below = below.ok_or_else(|| Problem::bad_request("below is missing"))?;
            let filter = FailureFilter { below: Some(below), ..failure_filter(caller, filter)? };
            change_failures(&operations, action, &filter).await?
        }
        ListKind::Conversations => {
            change_lanes(&operations, action, &lane_filter(caller, filter)?).await?
        }
        _ => {
            let items = matching_items(console, caller, action, filter).await?;
            change_items(console, &operations, action, &items).await?
        }
    })
}

async fn change_failures(
    operations: &Operations,
    action: &Action,
    filter: &FailureFilter,
) -> Result<u64, Failure> {
    let ids = match action.operation {
        Operation::Redrive => operations.redrive_dead_letters(filter).await?,
        Operation::DeleteDeadLetters => operations.delete_dead_letters(filter).await?,
        Operation::Resend => operations.retry_outbox_failures(filter).await?,
        _ => operations.delete_outbox_failures(filter).await?,
    };
    Ok(ids.len() as u64)
}

async fn change_lanes(
    operations: &Operations,
    action: &Action,
    filter: &DeliveryFilter,
) -> Result<u64, Failure> {
    let whole_lanes = action.operation == Operation::CancelAll;
    let ended = match action.operation {
        Operation::Retry => return Ok(operations.retry_deliveries(filter).await?),
        Operation::Skip => operations.skip_deliveries(filter).await?,
        _ => operations.cancel_deliveries(filter, whole_lanes).await?,
    };
    Ok(ended.ended + ended.requested)
}

/// Changes selected objects one by one. Returns their number.
pub async fn change_items(
    console: &Console,
    operations: &Operations,
    action: &Action,
    items: &[String],
) -> Result<u64, Failure> {
    let unknown = || Problem::bad_request("a selected row has a malformed id");
    if matches!(action.list, ListKind::DeadLetters | ListKind::OutboxFailures) {
        let ids = items.iter().map(|item| item.parse().map_err(|_| unknown()));
        let ids = Some(ids.collect::<Result<Vec<i64>, Problem>>()?);
        let filter = FailureFilter { ids, ..FailureFilter::default() };
        return change_failures(operations, action, &filter).await;
    }
    let mut changed = 0;
    for item in items {
        match action.operation {
            Operation::PauseAgent(paused) => {
                let (org, agent) = parse_agent(item).ok_or_else(unknown)?;
                operations.set_agent_paused(&org, &agent, paused).await?;
            }
            Operation::Enable(enabled) => {
                let id = item.parse().map_err(|_| unknown())?;
                operations.set_connection_enabled(&console.js, id, enabled).await?;
            }
            Operation::PauseSending(paused) => {
                let id = item.parse().map_err(|_| unknown())?;
                operations.set_sending_paused(id, paused).await?;
            }
            Operation::Revoke => operations.revoke_link_code(item).await?,
            Operation::Unbind => {
                let conversation = parse_conversation(item).ok_or_else(unknown)?;
                operations.delete_binding(&conversation).await?;
            }
            _ => {
                let filter = parse_lane(item).ok_or_else(unknown)?;
                changed += change_lanes(operations, action, &filter).await?;
                continue;
            }
        }
        changed += 1;
    }
    Ok(changed)
}

fn parse_agent(item: &str) -> Option<(OrgId, AgentId)> {
    let (org, agent) = item.split_once('/')?;
    Some((org.parse().ok()?, agent.parse().ok()?))
}

/// Parses `<connection>/<team>/<channel>`.
fn parse_conversation(item: &str) -> Option<ConversationKey> {
    let mut parts = item.split('/');
    let key = ConversationKey {
        connection: parts.next()?.parse().ok()?,
        team: parts.next()?.parse().ok()?,
        channel: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(key)
}

/// Parses `<connection>.<lane>`, or `<connection>.<lane>.<head>` for one position of the head.
fn parse_lane(item: &str) -> Option<DeliveryFilter> {
    let mut parts = item.split('.');
    let connection: ConnectionId = parts.next()?.parse().ok()?;
    let lane: Lane = parts.next()?.parse().ok()?;
    let head = parts.next().map(str::parse).transpose().ok()?;
    let filter = DeliveryFilter {
        connection: Some(connection),
        lane: Some(lane),
        head,
        ..Default::default()
    };
    parts.next().is_none().then_some(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_items() {
        let id = format!("{:032x}", 7);
        let lane = parse_lane(&format!("{id}.00000000000000ff.3")).expect("a lane");
        assert_eq!((lane.lane.map(Lane::to_bits), lane.head), (Some(255), Some(3)));
        assert_eq!(parse_lane(&format!("{id}.00000000000000ff")).expect("a lane").head, None);
        assert!(parse_agent("acme/helper").is_some());
        assert!(parse_conversation(&format!("{id}/T1/C1")).is_some());
        for wrong in ["", "x", &id, &format!("{id}.x"), &format!("{id}.00000000000000ff.3.4")] {
            assert!(parse_lane(wrong).is_none(), "{wrong}");
        }
        assert!(parse_conversation(&format!("{id}/T1/C1/x")).is_none());
    }
}
