//! Table of Slack's error codes and their actions.
//!
//! A code is the `error` of an answer `{"ok":false,"error":...}` (see
//! docs.slack.dev/reference/methods/chat.postMessage#errors and others). A code that is not in the
//! table fails one call.

/// Action after an error of Slack's Web API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The installation ended: revoke the connection.
    Revoke,
    /// The token or this address may be refused: ask `auth.test`. Several refusals in a row set the
    /// connection to `error`.
    ConfirmToken,
    /// Tidegate is misconfigured: set the connection to `error`; a person must act.
    MarkMisconfigured,
    /// The rotating token expired: refresh it, then send again.
    RefreshToken,
    /// Another process may have refreshed the token: read the row again. If none did, the app must
    /// be installed again.
    ReloadToken,
    /// The workspace is being migrated: wait.
    Pause,
    /// The workspace of an organization did not grant access: fail its messages.
    RefuseTeam,
    /// Slack blocks this address: wait; a person must act.
    ReportBlockedAddress,
    /// The app lacks a scope: the feature fails until the app is installed again.
    ReportMissingScope,
    /// One conversation refuses messages: record it at the binding and fail the message.
    RefuseConversation,
    /// Too many calls: this method waits for this connection.
    Wait,
    /// Too many messages in the workspace: all methods that post wait.
    PauseMessages,
    /// The message may have been posted: look it up before it is sent again.
    Reconcile,
    /// The call fails.
    Fail,
}

impl Action {
    /// Returns the action after an error code.
    pub fn of_error(code: &str) -> Self {
        match code {
            "account_inactive" | "token_revoked" => Self::Revoke,
            "invalid_auth" => Self::ConfirmToken,
            "not_authed" | "not_allowed_token_type" => Self::MarkMisconfigured,
            "token_expired" => Self::RefreshToken,
            "invalid_refresh_token" => Self::ReloadToken,
            "team_added_to_org" | "org_login_required" => Self::Pause,
            "team_access_not_granted" => Self::RefuseTeam,
            "accesslimited" => Self::ReportBlockedAddress,
            "missing_scope" => Self::ReportMissingScope,
            "channel_not_found" | "not_in_channel" | "is_archived" => Self::RefuseConversation,
            code if code.starts_with("restricted_action") => Self::RefuseConversation,
            "ratelimited" | "rate_limited" => Self::Wait,
            "message_limit_exceeded" => Self::PauseMessages,
            // "Some aspect of the operation may have succeeded."
            "fatal_error" | "internal_error" | "service_unavailable" | "request_timeout" => {
                Self::Reconcile
            }
            _ => Self::Fail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test per row: error codes and their action.
    macro_rules! rows {
        ($($name:ident: $($code:literal)|+ => $action:ident;)+) => {$(
            #[test]
            fn $name() {
                $(assert_eq!(Action::of_error($code), Action::$action, "{}", $code);)+
            }
        )+};
    }

    rows! {
        revokes_for_removed_app: "account_inactive" | "token_revoked" => Revoke;
        confirms_invalid_token: "invalid_auth" => ConfirmToken;
        marks_misconfiguration: "not_authed" | "not_allowed_token_type" => MarkMisconfigured;
        refreshes_expired_token: "token_expired" => RefreshToken;
        reloads_used_refresh_token: "invalid_refresh_token" => ReloadToken;
        pauses_migrating_workspace: "team_added_to_org" | "org_login_required" => Pause;
        refuses_team_without_access: "team_access_not_granted" => RefuseTeam;
        reports_blocked_address: "accesslimited" => ReportBlockedAddress;
        reports_missing_scope: "missing_scope" => ReportMissingScope;
        refuses_closed_conversation:
            "channel_not_found" | "not_in_channel" | "is_archived" | "restricted_action"
            | "restricted_action_read_only_channel" => RefuseConversation;
        waits_for_rate_limit: "ratelimited" | "rate_limited" => Wait;
        pauses_full_workspace: "message_limit_exceeded" => PauseMessages;
        reconciles_server_error:
            "fatal_error" | "internal_error" | "service_unavailable"
            | "request_timeout" => Reconcile;
        fails_call_for_unknown_code: "no_text" | "" | "msg_too_long" => Fail;
    }
}
