//! What Tidegate is tested with: real nats-server, real Postgres, the real binaries. Only Slack and the agents behind
//! it are ours to play.
//!
//! ```text
//! world       a whole Tidegate, started and provisioned
//! slack       the fake: signs, sends, keeps receipts
//! agent       an agent that answers
//! nats, postgres, process, binaries   the real parts
//! guard       nothing is left behind, however we end
//! fetch, wheel, port   where the servers come from
//! until       waits for a condition; there is no sleep
//! ```

pub mod world;
pub mod slack;
pub mod agent;
pub mod nats;
pub mod postgres;
pub mod process;
pub mod binaries;
pub mod guard;
pub mod fetch;
pub mod port;
pub mod until;
mod wheel;
