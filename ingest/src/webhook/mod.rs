//! Stages of a webhook, from the request to the stream.

pub mod classify;
pub mod publisher;
pub mod signature;

mod body_budget;
mod notice;
mod pipeline;
mod quota;
mod request;
mod sync_response;
mod verdict;

pub use body_budget::{InFlightLimit, UnverifiedBudget};
pub use notice::NoticePlace;
pub use pipeline::{Pipeline, RequestContext};
pub use publisher::Publisher;
pub use quota::{QuotaLimits, Quotas};
pub use request::WebhookRequest;
pub use sync_response::SyncResponses;
pub use verdict::Verdict;
