//! Notifications to the operator's backend, and their endpoint.
//!
//! Triggers of the schema add notifications. [`sending`] claims the first of each connection and
//! records its result, so that those of a connection keep their order.

mod endpoint;
mod sending;

pub use endpoint::NotificationEndpoint;
pub(in crate::store) use endpoint::{SECRET_COLUMN as NOTIFICATION_SECRET_COLUMN, delete_endpoint};
pub use sending::{DueNotification, NotificationHead, NotificationStats};
