//! Stages of a webhook between its HTTP request and the stream.

pub mod classify;
pub mod publisher;
pub mod signature;

mod pipeline;

mod request;
mod sync_response;
mod verdict;

pub use pipeline::{Gate, Trail};
pub use publisher::Publisher;
pub use request::Incoming;
pub use sync_response::Replies;
pub use verdict::Verdict;
