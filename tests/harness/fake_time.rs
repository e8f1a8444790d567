//! Settings that give a process a wrong clock, with libfaketime.

/// Message of tests that are skipped without the library.
pub const MISSING: &str = "libfaketime is not installed (apt-get install libfaketime)";

const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
];

/// Returns the environment variables that shift the clock of a process by a time like `+1h` or
/// `-4m`. The monotonic clock stays right. Returns `None` without the library.
#[must_use]
pub fn settings(off: &str) -> Option<[(&'static str, String); 3]> {
    let library = LIBRARIES.into_iter().find(|path| std::path::Path::new(path).is_file())?;
    Some([
        ("LD_PRELOAD", library.to_owned()),
        ("FAKETIME", off.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}
