//! Sizes of tests: small in CI, or as large as the guarantees name if `TIDEGATE_FULL_SIZE` is set.

/// Returns `full` if `TIDEGATE_FULL_SIZE` is set and not empty, `ci` otherwise.
pub fn ci_or_full<T>(ci: T, full: T) -> T {
    let full_size = std::env::var_os("TIDEGATE_FULL_SIZE").is_some_and(|set| !set.is_empty());
    if full_size { full } else { ci }
}
