//! The specification, as tests: each name is a sentence about the product, each file a chapter of the promise.

mod connections;
mod directory;
mod kinds;
mod signatures;
mod sdk;
mod properties;
mod fuzz;
mod hardening;
mod duplicates;
mod replies;
mod links;
mod messages;
mod lanes;
mod hydration;
mod budget;
mod failover;
mod fencing;
mod drain;
mod dead;
mod standing;
mod health;
mod traces;
mod settings;
mod architecture;
mod readme;
mod harness;
