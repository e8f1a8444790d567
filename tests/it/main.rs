//! The specification, as tests: each name is a sentence about the product, each file a chapter of the promise.

mod connections;
mod directory;
mod signatures;
mod replies;
mod standing;
mod health;
mod traces;
mod duplicates;
mod links;
mod messages;
mod failover;
mod fencing;
mod dead;
mod settings;
mod architecture;
mod readme;
mod harness;
