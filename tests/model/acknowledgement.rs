//! Model of ingest's answer to Slack (design 2, promise 1): 200 only for a webhook that JetStream
//! has confirmed.
//!
//! Slack resends a webhook that was not answered 200. JetStream stores one copy within its window.
//! A publish or its confirmation may be lost.

use crate::checked::{Checked, Protocol, QUIESCENT, Steps, assert_holds, mutations};
use stateright::Property;

/// Maximum number of requests of Slack for one webhook.
const REQUESTS: u8 = 4;

pub const STORED: &str = "a webhook answered 200 is stored";
pub const ONE_COPY: &str = "a webhook is stored once";

mutations! { acknowledgement;
    /// 2.1 "Slack hears 200 only when JetStream has confirmed the webhook".
    AnsweredBeforeConfirmed, answered_before_confirmed => STORED;
    /// 2.1 "only when JetStream has confirmed": silence is no confirmation.
    TimeoutAnswered200, timeout_answered_200 => STORED;
    /// 4 "`Nats-Msg-Id` (dedup key …)": Slack's retries share it.
    KeyOfRequest, key_of_request => ONE_COPY;
    /// 4 "Over quota an event gets 503", so that Slack sends it again.
    RefusalNotRepeated, refusal_not_repeated => QUIESCENT;
}

struct Acknowledgement {
    mutation: Mutation,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Request {
    Publishing,
    /// JetStream stored the webhook, or the publish was lost. The confirmation may still arrive.
    Published {
        confirmed: bool,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct State {
    request: Option<Request>,
    requests: u8,
    stored: u8,
    got_200: bool,
    /// Lost publishes and confirmations.
    losses: u8,
}

fn acknowledgement(mutation: Mutation) -> Acknowledgement {
    Acknowledgement { mutation }
}

impl Protocol for Acknowledgement {
    type State = State;

    fn initial(&self) -> State {
        State::default()
    }

    fn steps(&self, s: &State, steps: &mut Steps<'_, State>) {
        let is = |mutation| self.mutation == mutation;
        let first_only = is(Mutation::RefusalNotRepeated) && s.requests > 0;
        match s.request {
            None if s.got_200 || s.requests == REQUESTS || first_only => {}
            None => steps.step("Slack sends", s.requests.into(), |s| {
                s.requests += 1;
                s.request = Some(Request::Publishing);
                s.got_200 |= is(Mutation::AnsweredBeforeConfirmed);
            }),
            Some(Request::Publishing) => {
                steps.step("stored", 0, |s| {
                    let is_copy = s.stored > 0 && !is(Mutation::KeyOfRequest);
                    s.stored += u8::from(!is_copy);
                    s.request = Some(Request::Published { confirmed: true });
                });
                if s.losses < 2 {
                    steps.fault("publish is lost", 0, |s| {
                        s.losses += 1;
                        s.request = Some(Request::Published { confirmed: false });
                    });
                }
            }
            Some(Request::Published { confirmed }) => {
                if confirmed {
                    steps.step("confirmed: 200", 0, |s| (s.request, s.got_200) = (None, true));
                }
                if !confirmed || s.losses < 2 {
                    let fault = u8::from(confirmed);
                    steps.step("timed out: 503", 0, |s| {
                        s.losses += fault;
                        s.request = None;
                        s.got_200 |= is(Mutation::TimeoutAnswered200);
                    });
                }
            }
        }
    }

    fn is_done(&self, s: &State) -> bool {
        s.got_200 && s.stored > 0
    }

    fn promises() -> Vec<Property<Checked<Self>>> {
        vec![
            Property::always(STORED, |_, s: &State| !s.got_200 || s.stored > 0),
            Property::always(ONE_COPY, |_, s: &State| s.stored <= 1),
        ]
    }
}

#[test]
fn holds() {
    assert_holds(|| acknowledgement(Mutation::None));
}
