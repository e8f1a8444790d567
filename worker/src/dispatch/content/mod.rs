//! Content of an answer in Slack's form. Pure.
//!
//! An agent writes Markdown, in pieces or as a whole. [`Markdown`] reads it: tables become blocks,
//! broadcasts become plain text. [`SegmentPlan`] cuts the content into messages within Slack's
//! limits, and [`render`] makes one message of it where it is not streamed. Used by `agents` for
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
