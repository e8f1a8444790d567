//! Columns of sealed values, with the statements that re-encrypt them.

use crate::directory::{APP_SIGNING_SECRET_COLUMN, SIGNING_SECRET_COLUMN};
use crate::store::{
    AGENT_HEADERS_COLUMN, APPROVAL_COLUMN, NOTIFICATION_SECRET_COLUMN,
    apps::CLIENT_SECRET_COLUMN,
    connections::BOT_TOKEN_COLUMN,
    runs::{RUN_ASK_COLUMN, RUN_PART_COLUMN},
};

/// Condition on payloads that another key than `$1` sealed.
macro_rules! payload_of_another_key {
    () => {
        "substring(payload for 1 + length($1)) <> decode(lpad(to_hex(length($1)), 2, '0'), 'hex') ||
        convert_to($1, 'UTF8')"
    };
}

/// Column of sealed values.
#[derive(Debug)]
pub struct SealedColumn {
    /// Table and column.
    pub name: &'static str,
    /// True if the signing keyring seals it, instead of the token keyring.
    pub(super) signing: bool,
    /// True if it holds bytes, instead of text.
    pub(super) bytes: bool,
    /// Column that its values are sealed for.
    pub(super) sealed_for: &'static str,
    /// Query of rows that another key than `$1` sealed, after row key `$2`, at most `$3`: key,
    /// owner, sealed.
    pub(super) list: &'static str,
    /// Statement that replaces `$2` by `$3` in the row of key `$1`.
    pub(super) write: &'static str,
    /// Query of key ids and numbers of values.
    pub(super) count: &'static str,
}

/// All sealed columns. A test compares this list with the schema.
pub const SEALED_COLUMNS: [SealedColumn; 21] = [
    SealedColumn {
        name: "connections.signing_secret",
        signing: true,
        bytes: false,
        sealed_for: SIGNING_SECRET_COLUMN,
        list: "-- rewrap.list_signing_secrets
            select id as key, id as owner, signing_secret as sealed from connections
             where id > $2 and signing_secret not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.signing_secret
            update connections set signing_secret = $3 where id = $1 and signing_secret = $2",
        count: "-- rewrap.count_signing_secrets
            select split_part(signing_secret, ':', 1) as key, count(*) as count from connections
             where signing_secret is not null group by 1",
    },
    SealedColumn {
        name: "connections.signing_secret_previous",
        signing: true,
        bytes: false,
        sealed_for: SIGNING_SECRET_COLUMN,
        list: "-- rewrap.list_previous_secrets
            select id as key, id as owner, signing_secret_previous as sealed from connections
             where id > $2 and signing_secret_previous not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.previous_secret
            update connections set signing_secret_previous = $3 where id = $1
               and signing_secret_previous = $2",
        count: "-- rewrap.count_previous_secrets
            select split_part(signing_secret_previous, ':', 1) as key, count(*) as count
              from connections
             where signing_secret_previous is not null group by 1",
    },
    SealedColumn {
        name: "connections.bot_token",
        signing: false,
        bytes: false,
        sealed_for: BOT_TOKEN_COLUMN,
        list: "-- rewrap.list_bot_tokens
            select id as key, id as owner, bot_token as sealed from connections
             where id > $2 and bot_token not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.bot_token
            update connections set bot_token = $3 where id = $1 and bot_token = $2",
        count: "-- rewrap.count_bot_tokens
            select split_part(bot_token, ':', 1) as key, count(*) as count from connections
             where bot_token is not null group by 1",
    },
    SealedColumn {
        name: "agents.secret",
        signing: false,
        bytes: false,
        sealed_for: "agents.secret",
        list: "-- rewrap.list_agents
            select org_id || '/' || id as key, org_id || '/' || id as owner, secret as sealed
              from agents
             where org_id || '/' || id > $2 and secret not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.agent
            update agents set secret = $3 where org_id || '/' || id = $1 and secret = $2",
        count: "-- rewrap.count_agents
            select split_part(secret, ':', 1) as key, count(*) as count from agents group by 1",
    },
    SealedColumn {
        name: "agents.headers",
        signing: false,
        bytes: false,
        sealed_for: AGENT_HEADERS_COLUMN,
        list: "-- rewrap.list_agent_headers
            select org_id || '/' || id as key, org_id || '/' || id as owner, headers as sealed
              from agents
             where org_id || '/' || id > $2 and headers not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.agent_headers
            update agents set headers = $3 where org_id || '/' || id = $1 and headers = $2",
        count: "-- rewrap.count_agent_headers
            select split_part(headers, ':', 1) as key, count(*) as count from agents
             where headers is not null group by 1",
    },
    SealedColumn {
        name: "agents.headers_previous",
        signing: false,
        bytes: false,
        sealed_for: AGENT_HEADERS_COLUMN,
        list: "-- rewrap.list_previous_agent_headers
            select org_id || '/' || id as key, org_id || '/' || id as owner,
                   headers_previous as sealed
              from agents
             where org_id || '/' || id > $2 and headers_previous not like $1 || ':%'
             order by 1 limit $3",
        write: "-- rewrap.previous_agent_headers
            update agents set headers_previous = $3
             where org_id || '/' || id = $1 and headers_previous = $2",
        count: "-- rewrap.count_previous_agent_headers
            select split_part(headers_previous, ':', 1) as key, count(*) as count from agents
             where headers_previous is not null group by 1",
    },
    SealedColumn {
        name: "apps.signing_secret",
        signing: true,
        bytes: false,
        sealed_for: APP_SIGNING_SECRET_COLUMN,
        list: "-- rewrap.list_app_signing_secrets
            select id as key, id as owner, signing_secret as sealed from apps
             where id > $2 and signing_secret not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.app_signing_secret
            update apps set signing_secret = $3 where id = $1 and signing_secret = $2",
        count: "-- rewrap.count_app_signing_secrets
            select split_part(signing_secret, ':', 1) as key, count(*) as count from apps
             where signing_secret is not null group by 1",
    },
    SealedColumn {
        name: "apps.signing_secret_previous",
        signing: true,
        bytes: false,
        sealed_for: APP_SIGNING_SECRET_COLUMN,
        list: "-- rewrap.list_previous_app_signing_secrets
            select id as key, id as owner, signing_secret_previous as sealed from apps
             where id > $2 and signing_secret_previous not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.app_signing_secret_previous
            update apps set signing_secret_previous = $3 where id = $1 and signing_secret_previous = $2",
        count: "-- rewrap.count_previous_app_signing_secrets
            select split_part(signing_secret_previous, ':', 1) as key, count(*) as count from apps
             where signing_secret_previous is not null group by 1",
    },
    SealedColumn {
        name: "apps.client_secret",
        signing: false,
        bytes: false,
        sealed_for: CLIENT_SECRET_COLUMN,
        list: "-- rewrap.list_app_client_secrets
            select id as key, id as owner, client_secret as sealed from apps
             where id > $2 and client_secret not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.app_client_secret
            update apps set client_secret = $3 where id = $1 and client_secret = $2",
        count: "-- rewrap.count_app_client_secrets
            select split_part(client_secret, ':', 1) as key, count(*) as count from apps
             where client_secret is not null group by 1",
    },
    SealedColumn {
        name: "apps.client_secret_previous",
        signing: false,
        bytes: false,
        sealed_for: CLIENT_SECRET_COLUMN,
        list: "-- rewrap.list_previous_app_client_secrets
            select id as key, id as owner, client_secret_previous as sealed from apps
             where id > $2 and client_secret_previous not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.app_client_secret_previous
            update apps set client_secret_previous = $3 where id = $1 and client_secret_previous = $2",
        count: "-- rewrap.count_previous_app_client_secrets
            select split_part(client_secret_previous, ':', 1) as key, count(*) as count from apps
             where client_secret_previous is not null group by 1",
    },
    SealedColumn {
        name: "notification_endpoint.secret",
        signing: false,
        bytes: false,
        sealed_for: NOTIFICATION_SECRET_COLUMN,
        list: "-- rewrap.list_notification_endpoint
            select 'backend' as key, 'backend' as owner, secret as sealed
              from notification_endpoint
             where $2 < 'backend' and secret not like $1 || ':%' limit $3",
        write: "-- rewrap.notification_endpoint
            update notification_endpoint set secret = $3 where $1 = 'backend' and secret = $2",
        count: "-- rewrap.count_notification_endpoint
            select split_part(secret, ':', 1) as key, count(*) as count
              from notification_endpoint group by 1",
    },
    SealedColumn {
        name: "token_rotations.client_secret",
        signing: false,
        bytes: false,
        sealed_for: "token_rotations.client_secret",
        list: "-- rewrap.list_client_secrets
            select connection_id as key, connection_id as owner, client_secret as sealed
              from token_rotations
             where connection_id > $2 and client_secret not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.client_secret
            update token_rotations set client_secret = $3 where connection_id = $1
               and client_secret = $2",
        count: "-- rewrap.count_client_secrets
            select split_part(client_secret, ':', 1) as key, count(*) as count from token_rotations
             where client_secret is not null group by 1",
    },
    SealedColumn {
        name: "token_rotations.refresh_token",
        signing: false,
        bytes: false,
        sealed_for: "token_rotations.refresh_token",
        list: "-- rewrap.list_refresh_tokens
            select connection_id as key, connection_id as owner, refresh_token as sealed
              from token_rotations
             where connection_id > $2 and refresh_token not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.refresh_token
            update token_rotations set refresh_token = $3 where connection_id = $1
               and refresh_token = $2",
        count: "-- rewrap.count_refresh_tokens
            select split_part(refresh_token, ':', 1) as key, count(*) as count from token_rotations
             group by 1",
    },
    SealedColumn {
        name: "outbox.request",
        signing: false,
        bytes: false,
        sealed_for: "outbox.request",
        list: "-- rewrap.list_outbox
            select id::text as key, connection_id || '/' || dedup_key as owner, request as sealed
              from outbox
             where id > coalesce(nullif($2, ''), '0')::bigint and request not like $1 || ':%'
             order by id limit $3",
        write: "-- rewrap.outbox
            update outbox set request = $3 where id = $1::bigint and request = $2",
        count: "-- rewrap.count_outbox
            select split_part(request, ':', 1) as key, count(*) as count from outbox group by 1",
    },
    SealedColumn {
        name: "outbox_failures.request",
        signing: false,
        bytes: false,
        sealed_for: "outbox.request",
        list: "-- rewrap.list_outbox_failures
            select id::text as key, connection_id || '/' || dedup_key as owner, request as sealed
              from outbox_failures
             where id > coalesce(nullif($2, ''), '0')::bigint and request not like $1 || ':%'
             order by id limit $3",
        write: "-- rewrap.outbox_failure
            update outbox_failures set request = $3 where id = $1::bigint and request = $2",
        count: "-- rewrap.count_outbox_failures
            select split_part(request, ':', 1) as key, count(*) as count from outbox_failures
             group by 1",
    },
    SealedColumn {
        name: "idempotency_keys.response",
        signing: false,
        bytes: false,
        sealed_for: "idempotency_keys.response",
        list: "-- rewrap.list_idempotency_keys
            select api_key_id || '/' || key as key, api_key_id || '/' || key as owner,
                   response as sealed
              from idempotency_keys
             where api_key_id || '/' || key > $2 and response not like $1 || ':%'
             order by 1 limit $3",
        write: "-- rewrap.idempotency_key
            update idempotency_keys set response = $3
             where api_key_id || '/' || key = $1 and response = $2",
        count: "-- rewrap.count_idempotency_keys
            select split_part(response, ':', 1) as key, count(*) as count from idempotency_keys
             where response is not null group by 1",
    },
    SealedColumn {
        name: "approvals.content",
        signing: false,
        bytes: false,
        sealed_for: APPROVAL_COLUMN,
        list: "-- rewrap.list_approvals
            select id as key, id as owner, content as sealed from approvals
             where id > $2 and content not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.approval
            update approvals set content = $3 where id = $1 and content = $2",
        count: "-- rewrap.count_approvals
            select split_part(content, ':', 1) as key, count(*) as count from approvals group by 1",
    },
    SealedColumn {
        name: "runs.ask",
        signing: false,
        bytes: false,
        sealed_for: RUN_ASK_COLUMN,
        list: "-- rewrap.list_run_asks
            select connection_id || '/' || lane || '/' || position as key,
                   connection_id || '/' || lane || '/' || position as owner, ask as sealed
              from runs
             where connection_id || '/' || lane || '/' || position > $2
               and ask not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.run_ask
            update runs set ask = $3
             where connection_id = split_part($1, '/', 1)
               and lane = split_part($1, '/', 2)::bigint
               and position = split_part($1, '/', 3)::bigint and ask = $2",
        count: "-- rewrap.count_run_asks
            select split_part(ask, ':', 1) as key, count(*) as count from runs
             where ask is not null group by 1",
    },
    SealedColumn {
        name: "run_parts.payload",
        signing: false,
        bytes: true,
        sealed_for: RUN_PART_COLUMN,
        list: concat!(
            "-- rewrap.list_run_parts
            select connection_id || '/' || lane || '/' || position || '/' || n as key,
                   connection_id || '/' || lane || '/' || position || '/' || n as owner,
                   payload as sealed
              from run_parts
             where connection_id || '/' || lane || '/' || position || '/' || n > $2 and ",
            payload_of_another_key!(),
            " order by 1 limit $3"
        ),
        write: "-- rewrap.run_part
            update run_parts set payload = $3
             where connection_id = split_part($1, '/', 1)
               and lane = split_part($1, '/', 2)::bigint
               and position = split_part($1, '/', 3)::bigint
               and n = split_part($1, '/', 4)::integer and payload = $2",
        count: "-- rewrap.count_run_parts
            select convert_from(substring(payload from 2 for get_byte(payload, 0)), 'UTF8') as key,
                   count(*) as count
              from run_parts group by 1",
    },
    SealedColumn {
        name: "deliveries.payload",
        signing: false,
        bytes: true,
        sealed_for: "webhook.payload",
        list: concat!(
            "-- rewrap.list_deliveries
            select connection_id || '/' || lane || '/' || position || '/' || part as key,
                   dedup_key as owner, payload as sealed
              from deliveries
             where (connection_id, lane, position, part)
                       > (split_part($2, '/', 1),
                          coalesce(nullif(split_part($2, '/', 2), ''), '0')::bigint,
                          coalesce(nullif(split_part($2, '/', 3), ''), '0')::bigint,
                          coalesce(nullif(split_part($2, '/', 4), ''), '0')::smallint)
               and ",
            payload_of_another_key!(),
            " order by connection_id, lane, position, part limit $3"
        ),
        write: "-- rewrap.delivery
            update deliveries set payload = $3
             where connection_id = split_part($1, '/', 1) and lane = split_part($1, '/', 2)::bigint
               and position = split_part($1, '/', 3)::bigint
               and part = split_part($1, '/', 4)::smallint and payload = $2",
        count: "-- rewrap.count_deliveries
            select convert_from(substring(payload from 2 for get_byte(substring(payload for 1), 0)),
                   'UTF8') as key, count(*) as count
              from deliveries group by 1",
    },
    SealedColumn {
        name: "dead_letters.payload",
        signing: false,
        bytes: true,
        sealed_for: "webhook.payload",
        list: concat!(
            "-- rewrap.list_dead_letters
            select id::text as key, coalesce(dedup_key, subject || '#' || generation || '/' ||
                   sequence) as owner,
                   payload as sealed
              from dead_letters
             where id > coalesce(nullif($2, ''), '0')::bigint and ",
            payload_of_another_key!(),
            " order by id limit $3"
        ),
        write: "-- rewrap.dead_letter
            update dead_letters set payload = $3 where id = $1::bigint and payload = $2",
        count: "-- rewrap.count_dead_letters
            select convert_from(substring(payload from 2 for get_byte(substring(payload for 1), 0)),
                   'UTF8') as key, count(*) as count
              from dead_letters where payload is not null group by 1",
    },
];
