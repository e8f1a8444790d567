//! The checker complains of what it should: of any one record dropped, repeated, swapped or made up.

use std::time::Duration;
use tests::checker::{Command, Fate, History, Said, check};

/// A good run of these many conversations, each with so many messages, told round robin.
fn good(conversations: u32, messages: u32) -> History {
    let all: Vec<Said> =
        (0..messages).flat_map(|place| (0..conversations).map(move |c| (c, place))).collect();
    History {
        sent: all.iter().map(|said| (*said, Fate::Accepted)).collect(),
        done: all.iter().map(|said| (*said, Duration::from_millis(5))).collect(),
        asked: all.clone(),
        told: all,
        ..History::default()
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
        history.sent.values_mut().for_each(|fate| *fate = Fate::Unknown);
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
        let mut asked = history.clone();
        asked.asked.swap(at, other);
        assert!(!check(&asked).asked_out_of_order.is_empty());
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

#[test]
fn what_nobody_knows_may_be_done_and_what_was_turned_away_may_not() {
    runs(|history, at| {
        let said = history.told[at];
        for (fate, phantom) in [(Fate::Unknown, 0), (Fate::Refused, 1)] {
            let mut history = history.clone();
            history.sent.insert(said, fate);
            assert_eq!(check(&history).phantom.len(), phantom, "{fate:?}");
        }
    });
}

#[test]
fn a_command_is_answered_or_told_so_and_nothing_else() {
    for (command, holds) in [
        (Command::Accepted { answered: true }, true),
        (Command::ToldSo, true),
        (Command::Unknown, true),
        (Command::Accepted { answered: false }, false),
        (Command::Failed("500".into()), false),
    ] {
        let history = History { commands: vec![command.clone()], ..good(1, 2) };
        assert_eq!(check(&history).holds(false), holds, "{command:?}");
    }
}
