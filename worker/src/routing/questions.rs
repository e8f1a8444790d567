//! Limit of questions per person.
//!
//! A question is a message, a command, a click or a shortcut of a person that an agent gets. The
//! limit is the agent's (`max_per_user`). It applies to the questions of a person on one
//! connection, to all of its agents, within a minute of the stream's time. Each partition of the
//! connection writes its own counts, so concurrent decisions in other partitions are not counted.
//! Tidegate's commands, submissions and menu look-ups are not limited: the click that opened a form
//! was.

use super::{Input, Webhook, event, messages, notice};
use shared::{
    domain::WebhookKind,
    slack::InboundPayload,
    store::{Decision, Effects, IgnoreReason, ProcessedAs, QuestionEffect},
    stream::DedupKey,
};

const SECONDS_PER_MINUTE: i64 = 60;

/// Returns whether a webhook is a question.
pub(super) fn is_question(webhook: &Webhook<'_>) -> bool {
    match &webhook.inbound {
        InboundPayload::Command(_) => true,
        InboundPayload::Interaction(interaction) => {
            webhook.envelope.kind == WebhookKind::Interaction
                && interaction.sync_response_kind().is_none()
                && messages::is_addressed(webhook, None, false)
        }
        InboundPayload::Event(_) => {
            event(webhook).is_some_and(|(_, event)| !event.is_by_bot())
                && messages::is_addressed(webhook, None, true)
        }
        InboundPayload::Unparsable => false,
    }
}

/// Returns the decision on a question beyond the limit. The first one in a minute is answered with
/// a notice, the others are ignored.
pub(super) fn refusal(
    input: &Input<'_>,
    max_per_user: i32,
    trigger: Option<&DedupKey>,
) -> Option<Decision> {
    let questions = input.facts.questions;
    if questions.asked < i64::from(max_per_user) || !is_question(input.webhook) {
        return None;
    }
    let again_at = (i64::from(questions.minute) + 1) * SECONDS_PER_MINUTE;
    let team = input.connection.team.as_ref();
    let notice = || notice(input.webhook, team, &text(max_per_user, again_at));
    let Some(notice) = (!questions.is_told).then(notice).flatten() else {
        let reason = IgnoreReason::TooManyQuestions;
        return Some(Decision::Ignore { reason, addressed: true });
    };
    let effects = Effects {
        messages: vec![notice],
        question: Some(QuestionEffect::Refused),
        trigger: trigger.cloned(),
        ..Effects::new(ProcessedAs::Refusal)
    };
    Some(Decision::Apply(Box::new(effects)))
}

/// Returns the text of the notice. Slack shows the time in the person's time zone.
fn text(max_per_user: i32, again_at: i64) -> String {
    format!(
        "The limit of {max_per_user} requests a minute is reached; this request was not passed on. \
         Send it again after <!date^{again_at}^{{time_secs}}|a minute>."
    )
}
