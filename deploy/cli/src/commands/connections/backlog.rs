//! Text about the backlog of a connection that is near a limit.

use shared::store::ConnectionBacklog;

/// Returns `full` if a limit is reached, `large` if one is near, or a dash.
pub fn state(backlog: Option<&ConnectionBacklog>) -> &'static str {
    match backlog {
        Some(backlog) if backlog.deliveries_full || backlog.dead_letters_full => "full",
        Some(_) => "large",
        None => "-",
    }
}

/// Returns the counts, and the effects of limits that are reached.
pub fn describe(backlog: Option<&ConnectionBacklog>) -> String {
    let Some(backlog) = backlog else { return "-".into() };
    let mib = |bytes: i64| bytes / (1 << 20);
    let mut text = format!(
        "{} deliveries ({} MiB), {} dead letters ({} MiB), {} messages",
        backlog.deliveries,
        mib(backlog.delivery_bytes),
        backlog.dead_letters,
        mib(backlog.dead_letter_bytes),
        backlog.messages,
    );
    for (applies, effect) in [
        (backlog.deliveries_full, "; full: new deliveries become dead letters without bytes"),
        (backlog.messages_full, "; replies of commands and notices are dropped"),
        (backlog.dead_letters_full, "; new dead letters are stored without bytes"),
        (backlog.ignores, "; webhooks that would become dead letters are ignored"),
    ] {
        text.push_str(if applies { effect } else { "" });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describes_full_backlog() {
        let mut backlog = ConnectionBacklog {
            deliveries: 1_000_000,
            delivery_bytes: 3 << 30,
            dead_letters: 7,
            deliveries_full: true,
            ..ConnectionBacklog::default()
        };
        insta::assert_snapshot!(
            describe(Some(&backlog)),
            @"1000000 deliveries (3072 MiB), 7 dead letters (0 MiB), 0 messages; full: new deliveries become dead letters without bytes"
        );
        assert_eq!(state(Some(&backlog)), "full");
        backlog.deliveries_full = false;
        assert_eq!((state(Some(&backlog)), state(None)), ("large", "-"));
    }
}
