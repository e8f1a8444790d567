//! HTTP front: listeners, routes and responses.

mod response;
mod routes;
mod server;

pub use routes::{admin_router, router};
pub use server::{FINISH_TIMEOUT, HEAD_BYTES_MAX, serve};
