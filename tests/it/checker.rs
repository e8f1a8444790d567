//! The checker complains of what it should: of any one record dropped, repeated, swapped or made up.

use std::time::Duration;
use tests::checker::{History, Said, check};

/// A good run of these many conversations, each with so many messages, told round robin.
fn good(conversations: u32, messages: u32) -> History {
    let all: Vec<Said> =
        (0..messages).flat_map(|place| (0..conversations).map(move |c| (c, place))).collect();
    History {
        sent: all.iter().map(|said| (*said, true)).collect(),
        done: all.iter().map(|said| (*said, Duration::from_millis(5))).collect(),
        dead: Vec::new(),
        told: all,
    }
}

fn runs(check: impl Fn(History, usize) + std::panic::RefUnwindSafe) {
    bolero::check!().with_iterations(500).with_type::<(u8, u8, usize)>().for_each(|(c, m, at)| {
        let history = good(u32::from(c % 5) + 1, u32::from(m % 7) + 2);
        let at = at % history.told.len();
        check(history, at);
    });
}

#[test]
fn a_good_run_holds() {
    runs(|history, _| assert!(check(&history).holds(false), "{}", check(&history)));
}

#[test]
fn a_run_in_which_nothing_was_accepted_proves_nothing() {
    assert!(!check(&History::default()).holds(true));
    runs(|mut history, _| {
        history.sent.values_mut().for_each(|accepted| *accepted = false);
        assert!(!check(&history).holds(true));
    });
}

#[test]
fn a_record_that_is_dropped_is_missed() {
    runs(|history, at| {
        let mut undone = history.clone();
        let (said, _) = undone.done.remove(at);
        assert_eq!(check(&undone).lost, [said]);
        let mut untold = history.clone();
        let said = untold.told.remove(at);
        assert_eq!(check(&untold).unsaid, [said]);
        let mut unsent = history;
        unsent.sent.remove(&said);
        assert_eq!(check(&unsent).phantom, [said]);
    });
}

#[test]
fn a_record_that_is_repeated_is_counted() {
    runs(|history, at| {
        let mut twice = history.clone();
        let done = twice.done[at];
        twice.done.push(done);
        assert_eq!(check(&twice).doubled, [done.0]);
        let mut twice = history;
        let said = twice.told[at];
        twice.told.push(said);
        let verdict = check(&twice);
        assert_eq!(verdict.repeated, 1);
        assert!(
            verdict.holds(true) && !verdict.holds(false),
            "only a killed process may say something twice"
        );
    });
}

#[test]
fn two_messages_of_a_conversation_that_are_swapped_are_out_of_order() {
    runs(|mut history, at| {
        let (conversation, place) = history.told[at];
        let other = history
            .told
            .iter()
            .position(|said| said.0 == conversation && said.1 != place)
            .expect("two at least");
        history.told.swap(at, other);
        assert!(!check(&history).out_of_order.is_empty());
    });
}

#[test]
fn what_was_given_up_is_told_of() {
    runs(|mut history, at| {
        let (said, _) = history.done.remove(at);
        history.dead.push(said);
        let verdict = check(&history);
        assert!(verdict.lost.is_empty() && !verdict.holds(true));
    });
}
