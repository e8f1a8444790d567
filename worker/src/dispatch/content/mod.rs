//! Conversion of answers to messages for Slack. Pure.
//!
//! Agents write Markdown, whole or in pieces. [`Markdown`] converts it: tables become blocks,
//! broadcasts become plain text. [`SegmentPlan`] splits the content into messages within Slack's
//! limits. [`render`] returns the body of a message that is not streamed. Called by `agents` for
//! JSON answers and by `runs` for streams.

mod broadcasts;
mod chunks;
mod fences;
#[cfg(test)]
mod fuzz;
mod markdown;
mod render;
mod segments;
mod tables;

pub use broadcasts::{plain_markdown, without_broadcasts};
pub use chunks::{Chunk, push, text_of};
pub use markdown::Markdown;
pub use render::{messages, render};
pub use segments::{PlannedPart, SegmentPlan, closing_of};
