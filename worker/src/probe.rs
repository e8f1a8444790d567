//! Hook for tests: a function that is called in each stage and may panic. The released worker sets
//! none.

/// Stage in which a probe is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Intake, before a webhook is parsed.
    Parse,
    /// Intake, when a webhook is decided.
    Decide,
    /// Dispatch, before an agent is called.
    Attempt,
    /// The outbox, before a message is sent.
    Send,
}

/// Function that receives the stage and the body of the webhook or the text of the message.
pub type Probe = fn(Stage, &[u8]);
