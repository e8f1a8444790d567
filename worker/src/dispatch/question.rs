//! Question to an agent in mode `reply`: starts a call or resumes the run of an earlier attempt.
//!
//! Called by `attempt`. An answer in JSON completes the attempt; a stream continues as a run.

use super::{
    agents::{self, AnswerPolicy, AskOutcome, Completion},
    attempt::{CallResult, RELEASE_WAIT},
    attempt_context::AttemptContext,
    merged_messages, retry,
    runs::{self, Canceller, Registration, RunTarget, StreamingRun},
    sessions::SessionKey,
};
use crate::{
    context::WorkerTerm,
    routing::{self, Webhook},
};
use shared::{
    runtime::telemetry::ErrorChain,
    store::{Agent, ClaimedDelivery, Connection},
};
use std::{sync::Arc, time::Duration};

/// Wait of a delivery above which its message is checked for deletion before the attempt.
const DELETION_CHECK_AFTER: Duration = Duration::from_secs(1);

/// Sends a question to an agent, or resumes the run of an earlier attempt.
pub async fn ask(
    context: &AttemptContext,
    term: &Arc<WorkerTerm>,
    agent: &Arc<Agent>,
    connection: &Connection,
    webhook: &Webhook<'_>,
    delivery: &ClaimedDelivery,
) -> CallResult {
    let clients = &context.clients;
    let id = runs::run_id(delivery.key.connection, &delivery.dedup_key);
    let mut stored = None;
    // The first attempt has no run.
    if delivery.attempts > 1 {
        stored = match clients.store.stored_run(delivery.into()).await {
            Ok(stored) => stored,
            Err(error) => {
                let error = ErrorChain(&error).to_string();
                return CallResult::Released { after: RELEASE_WAIT, error };
            }
        };
    }
    let mut has_ended = stored.as_ref().is_some_and(|run| run.state.ended.is_some());
    if delivery.waited > DELETION_CHECK_AFTER
        && let Some(outcome) = agents::control_outcome(clients, connection, webhook).await
    {
        if stored.is_none() {
            return CallResult::completed(Completion::unreached(outcome, Vec::new()));
        }
        has_ended = true; // the run finds the control, too, and only ends its message in Slack
    }
    let message = routing::agent_message(webhook, connection.team.as_ref());
    let active = message.as_ref().map(|message| {
        let key = SessionKey::new(connection.id, message);
        // An earlier attempt may have shown a status before its worker died.
        let may_be_shown = stored.is_some() || delivery.crashes > 0;
        context.sessions.begin(key, term, may_be_shown)
    });
    let target_of = |asked_at: Option<String>| {
        let target = message.as_ref().map(|message| RunTarget::new(id.clone(), message))?;
        let trigger_ts = asked_at.unwrap_or_else(|| target.trigger_ts.clone());
        Some(RunTarget { trigger_ts, ..target })
    };
    let (target, stream) = if has_ended {
        (target_of(None), None)
    } else {
        let resume_after = stored.as_ref().and_then(|run| run.state.last_event_id.as_deref());
        let parts = match merged_messages::load(context, agent, connection, webhook, delivery).await
        {
            Ok(parts) => parts,
            Err(error) => {
                let error = ErrorChain(&error).to_string();
                return CallResult::Released { after: RELEASE_WAIT, error };
            }
        };
        // An idempotency key must always name the same messages.
        let mut request_id = webhook.envelope.dedup_key.as_str().to_owned();
        if parts.len() > 1 {
            request_id.push_str(&format!(":merge:{}", parts.len()));
        }
        let asked_at = parts.last().map(|part| part.ts.clone());
        let target = target_of(asked_at.clone());
        let run = agents::Run {
            id: &id,
            resume_after,
            delivery,
            request_id: &request_id,
            parts: &parts,
            asked_at: asked_at.as_deref(),
        };
        let asking = agents::ask(clients, agent, connection, webhook, run);
        let asked = match &target {
            Some(target) => {
                let mut registration = Registration::new(&context.controls, connection.id, target);
                tokio::select! {
                    asked = asking => asked,
                    reason = registration.cancelled() => {
                        Canceller { context, agent, run: &id }.cancel(reason).await;
                        let cancelled = Completion::unreached(reason.outcome(), Vec::new());
                        return CallResult::completed(cancelled);
                    }
                }
            }
            None => asking.await,
        };
        match asked {
            Ok(AskOutcome::Completed(completion)) => {
                return CallResult::completed(completion);
            }
            Ok(AskOutcome::Replied(completion, change)) => {
                if let Some(active) = &active {
                    change.title.into_iter().for_each(|title| active.set_title(title));
                    change.prompts.into_iter().for_each(|prompts| active.set_prompts(prompts));
                    if !completion.messages.is_empty() || completion.change.is_some() {
                        active.reply_posted();
                    }
                }
                return CallResult::completed(completion);
            }
            Ok(AskOutcome::Streaming(stream)) => (target, Some(stream)),
            Err(error) => {
                let retry_for = retry::retry_for(agent.retry_for, agent.mode);
                return CallResult::Failed(error, retry_for);
            }
        }
    };
    let Some((target, session)) = target.zip(active) else {
        return CallResult::completed(Completion::new("completed"));
    };
    CallResult::Streaming(Box::new(StreamingRun {
        delivery: delivery.clone(),
        agent: Arc::clone(agent),
        target,
        stream,
        stored,
        policy: AnswerPolicy::new(agent, connection),
        session,
        traceparent: webhook.envelope.traceparent.clone(),
    }))
}
