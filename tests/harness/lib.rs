//! What Tidegate is tested with: real nats-server, real Postgres, the real binaries. Only Slack and the agents behind
//! it are ours to play.
//!
//! ```text
//! world       a whole Tidegate, started
//! provision   organizations, agents and connections for it
//! install     an app to install by OAuth, and browsers
//! slack       the fake: signs, sends, keeps receipts
//! agent       an agent that answers
//! counter     an agent that counts, for more questions than fit into memory
//! size        how large a test is
//! load        conversations, sent until they are taken
//! race        people who race for link codes
//! strike      what can be done to it meanwhile
//! stream      its stream, as an administrator has it
//! checker     what must be true of a run, whatever was done to it
//! day         a day of fifty connections, decided by a seed
//! recording   what lay in the stream, as a file, and put into another
//! effects     what it led to, and how two worlds or builds differ in that
//! shapes      the webhooks that Slack documents, and what must become of each
//! fixtures    the same, ready to be sent
//! dump        everything that rests in Postgres and NATS
//! console     browsers of the console, without scripts
//! control_api callers of the control API
//! sdk         Slack's own SDK, as another signer and verifier
//! browser     Chromium, which clicks through an installation
//! bolt        stock apps, written with Slack's own frameworks
//! nats, postgres, binaries   the real parts
//! keys        who may connect
//! proxy       a link that can be slow, cut, half open
//! netns       a network of its own, and a cable to pull
//! fetch, npm  where the SDKs come from
//! ```
//!
//! The crate `dev` finds the servers, runs processes and leaves nothing behind, however we end; it
//! waits for conditions, and there is no sleep.

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
