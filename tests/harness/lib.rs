//! Harness of the tests: a real nats-server, a real Postgres and the real programs. Only Slack and
//! the agents are simulated.
//!
//! ```text
//! test_env    a complete deployment of Tidegate on this machine
//! provision   organizations, agents and connections of a test environment
//! install     an app to install by OAuth, and HTTP clients that install it
//! directory   directory entries of many connections, written without Postgres
//! slack       the simulated Slack: sends signed webhooks, serves the Web API, records calls
//! agent       a sample agent that echoes messages
//! markdown    generated Markdown documents
//! console     HTTP clients of the console, without scripts
//! control_api callers of the control API
//! dump        everything stored in Postgres and NATS
//! counter     an agent that counts requests without storing them
//! size        sizes of tests: CI or full
//! load        messages in conversations, resent until they are accepted
//! link_code_race   people who race for link codes
//! fault       faults of processes
//! stream      administration of the stream
//! checker     check of a run against the guarantees
//! scenario    a day of fifty connections, generated from a seed
//! recording   the content of a stream as a file, and its processing in another stream
//! effects     effects of webhooks, and differences between environments or builds
//! shapes      the webhooks that Slack documents, with their expected treatment
//! fixtures    the same webhooks, ready to be sent
//! samples     the sample agents of `worker/examples`
//! sdk         Slack's SDK for Python, as a second implementation of signatures
//! bolt        apps that use Slack's Bolt frameworks
//! browser     Chromium, for the console and installations
//! nats, postgres, binaries   the real servers and programs
//! keys        NATS keys of the users
//! proxy       TCP links that can be delayed, held and cut
//! netns       network namespaces with a link that can be disconnected
//! fake_time   processes with a wrong clock
//! s2          decompression of JetStream's blocks
//! fetch, npm  packages of the tests, pinned
//! ```
//!
//! The crate `dev` finds the servers, runs processes and removes everything when a test process
//! ends, also if it is killed. Tests wait for conditions ([`eventually`]) instead of fixed times
//! where they can.

pub mod test_env;
pub mod provision;
pub mod install;
pub mod directory;
pub mod slack;
pub mod agent;
pub mod markdown;
pub mod console;
pub mod control_api;
pub mod dump;
pub mod counter;
pub mod size;
pub mod load;
pub mod link_code_race;
pub mod fault;
mod stream;
pub mod checker;
pub mod scenario;
pub mod recording;
pub mod effects;
pub mod shapes;
pub mod fixtures;
pub mod samples;
pub mod sdk;
pub mod bolt;
pub mod browser;
pub mod nats;
pub mod keys;
pub mod proxy;
pub mod netns;
pub mod fake_time;
pub mod postgres;
pub mod binaries;

pub mod s2;
pub mod fetch;

mod npm;

pub use dev::{eventually, port, process, run_dir};
