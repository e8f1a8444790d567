//! Wrong clocks of processes, by libfaketime.

/// Hint for tests that do nothing without the library.
pub const MISSING: &str = "there is no libfaketime here (apt-get install libfaketime)";

const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
];

/// Returns the settings of a process whose clock is off by a time, as `+1h` or `-4m`; `None`
/// without the library. Its monotonic clock is right.
#[must_use]
pub fn settings(off: &str) -> Option<[(&'static str, String); 3]> {
    let library = LIBRARIES.into_iter().find(|path| std::path::Path::new(path).is_file())?;
    Some([
        ("LD_PRELOAD", library.to_owned()),
        ("FAKETIME", off.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}
