//! Sizes of tests: small in CI; as large as the promises when `TIDEGATE_FULL_SIZE` is set.

/// Returns the first size in CI, the second when `TIDEGATE_FULL_SIZE` is set and not empty.
pub fn ci_or_full<T>(ci: T, full: T) -> T {
    let full_size = std::env::var_os("TIDEGATE_FULL_SIZE").is_some_and(|set| !set.is_empty());
    if full_size { full } else { ci }
}
