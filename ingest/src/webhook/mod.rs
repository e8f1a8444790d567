//! Stages of a webhook from its request to the stream.

pub mod classify;
pub mod publisher;
pub mod signature;

mod pipeline;
mod request;
mod sync_response;
mod verdict;

pub use pipeline::{Pipeline, RequestContext};
pub use publisher::Publisher;
pub use request::WebhookRequest;
pub use sync_response::SyncResponses;
pub use verdict::Verdict;
