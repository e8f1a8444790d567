//! A function that is called in each stage, by which a test's own worker panics there. The product's worker has none.

/// A place at which a probe is called.
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

/// A function that gets the stage and what it works on: the body of the webhook, or the text of the message.
pub type Probe = fn(Stage, &[u8]);
