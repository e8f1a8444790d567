//! Slack's words for what is wrong, and what each asks of us: one table.
//!
//! In: the `error` of an answer `{"ok":false,"error":…}`. Out: an [`Action`]. The match has no "all else", so that a word
//! we learn does not compile until somebody says what follows from it; a word we don't know is [`SlackError::Other`].

/// A word that means something to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // Slack's words: docs.slack.dev/reference/methods/chat.postMessage#errors and others
pub enum SlackError {
    AccountInactive,
    TokenRevoked,
    InvalidAuth,
    NotAuthed,
    NotAllowedTokenType,
    TokenExpired,
    InvalidRefreshToken,
    TeamAddedToOrg,
    OrgLoginRequired,
    TeamAccessNotGranted,
    AccessLimited,
    MissingScope,
    ChannelNotFound,
    NotInChannel,
    IsArchived,
    /// `restricted_action`, and the words that begin with it.
    RestrictedAction,
    /// In both spellings.
    RateLimited,
    MessageLimitExceeded,
    FatalError,
    InternalError,
    ServiceUnavailable,
    RequestTimeout,
    /// A word of no consequence beyond this one call.
    Other,
}

/// What a word asks of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The installation is over: the connection is revoked.
    Revoke,
    /// The token may be bad, or our address is not welcome: `auth.test` is asked, and only several of these in a row
    /// put the connection in error.
    Confirm,
    /// We are set up wrongly: the connection is in error, and a person has to look.
    Mend,
    /// The token rotates and is over: refreshed, then tried again.
    Refresh,
    /// Somebody else refreshed it first: the row is read again. If nobody did, the app has to be installed anew.
    Reread,
    /// The workspace is being moved: everything waits, nothing is lost.
    Pause,
    /// This workspace of an organisation has not let us in: what is for it can't be said.
    StopTeam,
    /// Our address is not welcome there: a person has to look, and everything waits.
    Alert,
    /// The app lacks a scope: this feature does not work until it is installed anew.
    Degrade,
    /// Only this conversation: noted at its binding, never tried again. What came with a `response_url` was told there first.
    Elsewhere,
    /// Too many calls: this method of this workspace waits.
    Wait,
    /// Too many messages in the workspace: all that is said there waits.
    PauseTenant,
    /// It may have been said all the same: looked up before it is said again.
    Reconcile,
    /// Can't be said.
    Fail,
}

impl From<&str> for SlackError {
    fn from(word: &str) -> Self {
        match word {
            "account_inactive" => Self::AccountInactive,
            "token_revoked" => Self::TokenRevoked,
            "invalid_auth" => Self::InvalidAuth,
            "not_authed" => Self::NotAuthed,
            "not_allowed_token_type" => Self::NotAllowedTokenType,
            "token_expired" => Self::TokenExpired,
            "invalid_refresh_token" => Self::InvalidRefreshToken,
            "team_added_to_org" => Self::TeamAddedToOrg,
            "org_login_required" => Self::OrgLoginRequired,
            "team_access_not_granted" => Self::TeamAccessNotGranted,
            "accesslimited" => Self::AccessLimited,
            "missing_scope" => Self::MissingScope,
            "channel_not_found" => Self::ChannelNotFound,
            "not_in_channel" => Self::NotInChannel,
            "is_archived" => Self::IsArchived,
            "ratelimited" | "rate_limited" => Self::RateLimited,
            "message_limit_exceeded" => Self::MessageLimitExceeded,
            "fatal_error" => Self::FatalError,
            "internal_error" => Self::InternalError,
            "service_unavailable" => Self::ServiceUnavailable,
            "request_timeout" => Self::RequestTimeout,
            word if word.starts_with("restricted_action") => Self::RestrictedAction,
            _ => Self::Other,
        }
    }
}

impl SlackError {
    /// What follows.
    pub fn action(self) -> Action {
        match self {
            Self::AccountInactive | Self::TokenRevoked => Action::Revoke,
            Self::InvalidAuth => Action::Confirm,
            Self::NotAuthed | Self::NotAllowedTokenType => Action::Mend,
            Self::TokenExpired => Action::Refresh,
            Self::InvalidRefreshToken => Action::Reread,
            Self::TeamAddedToOrg | Self::OrgLoginRequired => Action::Pause,
            Self::TeamAccessNotGranted => Action::StopTeam,
            Self::AccessLimited => Action::Alert,
            Self::MissingScope => Action::Degrade,
            Self::ChannelNotFound
            | Self::NotInChannel
            | Self::IsArchived
            | Self::RestrictedAction => Action::Elsewhere,
            Self::RateLimited => Action::Wait,
            Self::MessageLimitExceeded => Action::PauseTenant,
            // "Some aspect of the operation may have succeeded."
            Self::FatalError
            | Self::InternalError
            | Self::ServiceUnavailable
            | Self::RequestTimeout => Action::Reconcile,
            Self::Other => Action::Fail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row a test: Slack's word, and what follows.
    macro_rules! rows {
        ($($name:ident: $($word:literal)|+ => $action:ident;)+) => {$(
            #[test]
            fn $name() {
                $(assert_eq!(SlackError::from($word).action(), Action::$action, "{}", $word);)+
            }
        )+};
    }

    rows! {
        a_deleted_workspace_or_a_removed_app_ends_the_connection: "account_inactive" | "token_revoked" => Revoke;
        a_token_that_is_called_invalid_is_confirmed_first: "invalid_auth" => Confirm;
        what_only_our_own_mistake_explains_is_for_a_person: "not_authed" | "not_allowed_token_type" => Mend;
        an_expired_token_is_refreshed: "token_expired" => Refresh;
        a_refresh_token_that_is_spent_is_read_again: "invalid_refresh_token" => Reread;
        a_workspace_that_is_moved_is_waited_for: "team_added_to_org" | "org_login_required" => Pause;
        a_workspace_that_did_not_let_us_in_is_left_alone: "team_access_not_granted" => StopTeam;
        a_restricted_network_is_told_and_waited_for: "accesslimited" => Alert;
        a_missing_scope_costs_its_feature: "missing_scope" => Degrade;
        a_closed_conversation_is_only_that_conversation:
            "channel_not_found" | "not_in_channel" | "is_archived" | "restricted_action"
            | "restricted_action_read_only_channel" => Elsewhere;
        a_limit_in_either_spelling_is_waited_out: "ratelimited" | "rate_limited" => Wait;
        a_full_workspace_pauses_the_tenant: "message_limit_exceeded" => PauseTenant;
        an_error_after_which_it_may_have_been_said_is_looked_up:
            "fatal_error" | "internal_error" | "service_unavailable" | "request_timeout" => Reconcile;
        a_word_we_do_not_know_fails_this_one_call: "no_text" | "" | "msg_too_long" => Fail;
    }
}
