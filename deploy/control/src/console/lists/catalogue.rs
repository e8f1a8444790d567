//! Definitions of the lists: columns and filters.

/// Kind of the rows of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    Webhooks,
    Conversations,
    Agents,
    Connections,
    Apps,
    LinkCodes,
    Bindings,
    DeadLetters,
    OutboxFailures,
    Usage,
    AuditLog,
}

/// Description of a list.
pub struct List {
    pub kind: ListKind,
    pub path: &'static str,
    pub title: &'static str,
    /// Name, label and example of each field of the filter.
    pub filters: &'static [(&'static str, &'static str, &'static str)],
    pub columns: &'static [&'static str],
    /// Text of a list without rows.
    pub empty: &'static str,
}

const ORGANIZATION: (&str, &str, &str) = ("organization", "Organization", "acme");
const CONNECTION: (&str, &str, &str) = ("connection", "Connection", "32 hex digits");
const TEXT: (&str, &str, &str) = ("text", "Reason or error contains", "timeout");

/// All lists.
pub static LISTS: &[List] = &[
    List {
        kind: ListKind::Webhooks,
        path: "/webhooks",
        title: "Webhooks of the last 7 days",
        filters: &[
            ("q", "Event id, permalink, channel/ts", "Ev0123 or C0123/1700000000.000100"),
            ("user", "User", "U0123"),
            ("agent", "Agent", "acme/helper"),
            ("error", "Outcome or error contains", "timeout"),
            CONNECTION,
            ORGANIZATION,
        ],
        columns: &["Time", "Webhook", "Outcome", "Agent", "Channel", "User", "Attempts", "Error"],
        empty: "No webhook of the last 7 days matches. Ignored webhooks are found by their event \
                id, permalink or channel/ts.",
    },
    List {
        kind: ListKind::Conversations,
        path: "/conversations",
        title: "Conversations with open deliveries",
        filters: &[
            ("agent", "Agent of the first delivery", "acme/helper"),
            CONNECTION,
            ORGANIZATION,
        ],
        columns: &[
            "State", "Agent", "Channel", "User", "Open", "Attempts", "Since", "Next", "Error",
        ],
        empty: "No conversation has an open delivery.",
    },
    List {
        kind: ListKind::Agents,
        path: "/agents",
        title: "Agents",
        filters: &[ORGANIZATION],
        columns: &["Agent", "Name", "State", "Mode", "Running", "Open", "Bindings", "URL", "Error"],
        empty: "No agent is declared.",
    },
    List {
        kind: ListKind::Connections,
        path: "/connections",
        title: "Connections",
        filters: &[ORGANIZATION],
        columns: &[
            "Connection",
            "Organization",
            "App",
            "Workspace",
            "Status",
            "Agent",
            "Sending",
            "Bindings",
        ],
        empty: "No connection exists.",
    },
    List {
        kind: ListKind::Apps,
        path: "/apps",
        title: "Apps",
        filters: &[],
        columns: &["App", "Name", "Organization", "Connections", "Scopes", "Redirect URL"],
        empty: "No app is declared.",
    },
    List {
        kind: ListKind::LinkCodes,
        path: "/link-codes",
        title: "Link codes",
        filters: &[ORGANIZATION],
        columns: &[
            "Code", "State", "Agent", "Surfaces", "Created", "Expires", "By", "Used in", "Used by",
        ],
        empty: "No link code of the last 30 days.",
    },
    List {
        kind: ListKind::Bindings,
        path: "/bindings",
        title: "Bindings of a connection",
        filters: &[CONNECTION],
        columns: &["Channel", "Workspace", "Agent", "Bound by", "Bound", "Last Slack error"],
        empty: "Choose a connection that has bound conversations.",
    },
    List {
        kind: ListKind::DeadLetters,
        path: "/dead-letters",
        title: "Dead letters",
        filters: &[TEXT, CONNECTION, ORGANIZATION],
        columns: &[
            "Time", "Webhook", "Stage", "Reason", "Error", "Agent", "Channel", "Attempts",
            "Redrive",
        ],
        empty: "No dead letter matches.",
    },
    List {
        kind: ListKind::OutboxFailures,
        path: "/outbox-failures",
        title: "Outbox failures",
        filters: &[TEXT, CONNECTION, ORGANIZATION],
        columns: &["Time", "Webhook", "Method", "Channel", "Slack error", "Attempts", "Created"],
        empty: "No rejected message matches.",
    },
    List {
        kind: ListKind::Usage,
        path: "/usage",
        title: "Usage by hour",
        filters: &[
            ("from", "From", "2026-01-31T12:00:00Z"),
            ("to", "To", "2026-02-01T00:00:00Z"),
            CONNECTION,
            ORGANIZATION,
        ],
        columns: &[
            "Hour",
            "Organization",
            "Connection",
            "Webhooks",
            "Ignored",
            "Deliveries",
            "Attempts",
            "Agent time",
            "Replies",
            "Failures",
        ],
        empty: "No usage is recorded in this period.",
    },
    List {
        kind: ListKind::AuditLog,
        path: "/audit-log",
        title: "Audit log",
        filters: &[
            ("actor", "Actor", "operator:alice"),
            ("action", "Action", "connection.disable"),
            ("object_kind", "Object kind", "connection"),
            ("object_id", "Object id", "acme/helper"),
            ("from", "From", "2026-01-31T12:00:00Z"),
            ("to", "To", "2026-02-01T00:00:00Z"),
            ORGANIZATION,
        ],
        columns: &["Time", "Actor", "Action", "Object", "Organization", "Before", "After"],
        empty: "No change matches.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_each_path_once() {
        let mut paths: Vec<_> = LISTS.iter().map(|list| list.path).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), LISTS.len());
    }
}
