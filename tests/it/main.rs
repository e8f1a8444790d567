//! The specification, as tests: each name is a sentence about the product, each file a chapter of the promise.

mod connections;
mod signatures;
mod duplicates;
mod links;
mod messages;
mod failover;
mod dead;
mod settings;
mod architecture;
mod readme;
mod harness;
