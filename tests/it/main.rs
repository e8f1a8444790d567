//! The specification, as tests. Read the names aloud.

mod harness;
