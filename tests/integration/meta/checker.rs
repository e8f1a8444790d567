//! Checker of runs under faults: it finds any record that is dropped, repeated, swapped or
//! invented.

use std::time::Duration;
use tests::checker::{Acceptance, Command, History, MessageId, check};

/// Returns the history of a correct run, with messages sent round robin.
fn correct_run(conversations: u32, messages: u32) -> History {
    let all: Vec<MessageId> =
        (0..messages).flat_map(|place| (0..conversations).map(move |c| (c, place))).collect();
    History {
        sent: all.iter().map(|message| (*message, Acceptance::Accepted)).collect(),
        done: all.iter().map(|message| (*message, Duration::from_millis(5))).collect(),
        agent_calls: all.clone(),
        posted: all,
        ..History::default()
    }
}

fn check_runs(check: impl Fn(History, usize) + std::panic::RefUnwindSafe) {
    bolero::check!().with_iterations(500).with_type::<(u8, u8, usize)>().for_each(|(c, m, at)| {
        let history = correct_run(u32::from(c % 5) + 1, u32::from(m % 7) + 2);
        let at = at % history.posted.len();
        check(history, at);
    });
}

/// The history of a correct run passes.
#[test]
fn accepts_correct_run() {
    check_runs(|history, _| assert!(check(&history).holds(false), "{}", check(&history)));
}

/// A run of which no message is known to be accepted does not pass.
#[test]
fn rejects_run_without_acceptance() {
    assert!(!check(&History::default()).holds(true));
    check_runs(|mut history, _| {
        history.sent.values_mut().for_each(|acceptance| *acceptance = Acceptance::Unknown);
        assert!(!check(&history).holds(true));
    });
}

/// A dropped record of processing, posting or sending is reported.
#[test]
fn finds_dropped_record() {
    check_runs(|history, at| {
        let mut unprocessed = history.clone();
        let (message, _) = unprocessed.done.remove(at);
        assert_eq!(check(&unprocessed).lost, [message]);
        let mut unposted = history.clone();
        let message = unposted.posted.remove(at);
        assert_eq!(check(&unposted).unsent, [message]);
        let mut unsent = history;
        unsent.sent.remove(&message);
        assert_eq!(check(&unsent).phantom, [message]);
    });
}

/// A webhook processed twice is reported. A message posted twice passes only after a kill.
#[test]
fn counts_repeated_records() {
    check_runs(|history, at| {
        let mut twice = history.clone();
        let done = twice.done[at];
        twice.done.push(done);
        assert_eq!(check(&twice).doubled, [done.0]);
        let mut twice = history;
        let message = twice.posted[at];
        twice.posted.push(message);
        let verdict = check(&twice);
        assert_eq!(verdict.repeated, 1);
        assert!(
            verdict.holds(true) && !verdict.holds(false),
            "only a killed process may send a message twice"
        );
    });
}

/// Swapped calls or messages of a conversation are reported.
#[test]
fn finds_swapped_messages() {
    check_runs(|mut history, at| {
        let (conversation, place) = history.posted[at];
        let other = history
            .posted
            .iter()
            .position(|message| message.0 == conversation && message.1 != place)
            .expect("two at least");
        let mut agent_calls = history.clone();
        agent_calls.agent_calls.swap(at, other);
        assert!(!check(&agent_calls).calls_out_of_order.is_empty());
        history.posted.swap(at, other);
        assert!(!check(&history).out_of_order.is_empty());
    });
}

/// A dead letter is not reported as lost, and the run does not pass.
#[test]
fn lists_dead_letters() {
    check_runs(|mut history, at| {
        let (message, _) = history.done.remove(at);
        history.dead.push(message);
        let verdict = check(&history);
        assert!(verdict.lost.is_empty() && !verdict.holds(true));
    });
}

/// A message with an unknown result may have effects; a rejected one must not.
#[test]
fn allows_effects_of_unknown_results() {
    check_runs(|history, at| {
        let message = history.posted[at];
        for (acceptance, phantom) in [(Acceptance::Unknown, 0), (Acceptance::Refused, 1)] {
            let mut history = history.clone();
            history.sent.insert(message, acceptance);
            assert_eq!(check(&history).phantom.len(), phantom, "{acceptance:?}");
        }
    });
}

/// A command without an answer or notice does not pass, unless its result is unknown.
#[test]
fn requires_answer_or_notice() {
    for (command, holds) in [
        (Command::Accepted { answered: true }, true),
        (Command::Notified, true),
        (Command::Unknown, true),
        (Command::Accepted { answered: false }, false),
        (Command::Failed("500".into()), false),
    ] {
        let history = History { commands: vec![command.clone()], ..correct_run(1, 2) };
        assert_eq!(check(&history).holds(false), holds, "{command:?}");
    }
}
