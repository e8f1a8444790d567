//! Statements that erase a person.

/// Connections of a workspace or organization of Slack.
macro_rules! connections_of_team {
    () => {
        "(select id from connections where coalesce(team_id, enterprise_id) = $1)"
    };
}

pub(super) use connections_of_team;

/// Statements that erase a person: `$1` is the workspace, `$2` the person, `$3` the person's direct
/// messages with apps. The messages of the person's webhooks come before the rows by which they are
/// found.
pub(super) const PERSON: [&str; 21] = [
    concat!(
        "-- erasure.outbox_failures
         delete from outbox_failures where connection_id in ",
        connections_of_team!(),
        " and (channel_key = any ($3) or dedup_key in (
                 select dedup_key from delivery_log where user_id = $2
                 union all select dedup_key from ignored_webhooks where user_id = $2
                 union all select dedup_key from dead_letters where user_id = $2))"
    ),
    "-- erasure.installed_by
     update connections set installed_by = 'erased'
      where installed_by = $2 and coalesce(team_id, enterprise_id) = $1 and $3::text[] is not null",
    "-- erasure.user_identities
     delete from user_identities where team_id = $1 and platform_user_id = $2 and $3::text[] is not null",
    "-- erasure.welcomed_users
     delete from welcomed_users where team_id = $1 and user_id = $2 and $3::text[] is not null",
    concat!(
        "-- erasure.user_questions
         delete from user_questions where user_id = $2 and $3::text[] is not null
            and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.approvals
         delete from approvals where ($2 = any (allowed) or decided_by = $2 or channel_id = any ($3))
            and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.feedback
         delete from feedback where (user_id = $2 or channel_id = any ($3)) and connection_id in ",
        connections_of_team!()
    ),
    "-- erasure.link_code_attempts
     delete from link_code_attempts where right(who, length($1) + length($2) + 2) = '/' || $1 || '/' || $2
        and $3::text[] is not null",
    "-- erasure.link_codes
     update link_codes set consumed_user = null, consumed_channel = null
      where consumed_team = $1 and consumed_user = $2 and $3::text[] is not null",
    concat!(
        "-- erasure.ignored_webhooks
         delete from ignored_webhooks where (user_id = $2 or channel_id = any ($3))
            and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.dead_letters
         delete from dead_letters where (user_id = $2 or channel_id = any ($3))
            and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.delivery_log
         update delivery_log set user_id = null, channel_id = null, ts = null, thread_ts = null, error = ''
          where (user_id = $2 or channel_id = any ($3)) and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.direct_bindings
         delete from channel_bindings where $2 <> '' and channel_id = any ($3) and connection_id in ",
        connections_of_team!()
    ),
    "-- erasure.bindings
     update channel_bindings set bound_by = 'erased'
      where team_id = $1 and bound_by = $2 and $3::text[] is not null",
    concat!(
        "-- erasure.direct_binding_history
         delete from channel_binding_history where $2 <> '' and channel_id = any ($3)
            and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.binding_history
         update channel_binding_history set changed_by = 'erased'
          where changed_by = $2 and $3::text[] is not null and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.sessions
         delete from conversation_sessions where $2 <> '' and channel_id = any ($3)
            and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.known_channels
         delete from known_channels where $2 <> '' and channel_id = any ($3) and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.outbox_channels
         delete from outbox_channels where $2 <> '' and pending = 0 and channel_key = any ($3)
            and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.outbox_log
         delete from outbox_log where $2 <> '' and channel_key = any ($3) and connection_id in ",
        connections_of_team!()
    ),
    concat!(
        "-- erasure.notifications
         delete from notifications where (data ->> 'user' = $2 or data ->> 'channel' = any ($3))
            and connection_id in ",
        connections_of_team!()
    ),
];
