//! What Tidegate is tested with: real nats-server, real Postgres, the real binaries. Only Slack and the agents behind
//! it are ours to play.
//!
//! ```text
//! world       a whole Tidegate, started
//! provision   organizations, agents and connections for it
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
//! fixtures    a webhook of every sort
//! sdk         Slack's own SDK, as another signer and verifier
//! bolt        stock apps, written with Slack's own frameworks
//! nats, postgres, process, binaries   the real parts
//! keys        who may connect
//! proxy       a link that can be slow, cut, half open
//! netns       a network of its own, and a cable to pull
//! guard       nothing is left behind, however we end
//! fetch, wheel, npm, port   where the servers and the SDK come from
//! until       waits for a condition; there is no sleep
//! ```

pub mod world;
pub mod provision;
pub mod slack;
pub mod agent;
pub mod counter;
pub mod size;
pub mod load;
pub mod race;
pub mod strike;
mod stream;
pub mod checker;
pub mod day;
pub mod recording;
pub mod effects;
pub mod fixtures;
pub mod sdk;
pub mod bolt;
pub mod nats;
pub mod keys;
pub mod proxy;
pub mod netns;
pub mod postgres;
pub mod process;
pub mod binaries;

pub mod guard;
pub mod fetch;
pub mod port;
pub mod until;
mod wheel;
mod npm;
