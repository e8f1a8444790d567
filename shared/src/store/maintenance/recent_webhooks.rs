//! Webhooks of the last days, newest first: those that ended, those that intake gave up on, and
//! those that are open.
//!
//! Rows of `delivery_log` are found by agent, person or time. Open deliveries have no index by
//! time. A bounded number of them is read.

use super::{BoundedCount, json};
use crate::domain::{AgentId, ConnectionId, OrgId};
use crate::store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use sqlx::{Postgres, postgres::PgArguments, query::Query};

/// Number of days that a search covers. Less than the slots of `delivery_log`.
const DAYS: i32 = 7;
/// Maximum open lanes that a search reads, with at most 101 deliveries each.
const OPEN_READ_MAX: i64 = 20_000;

/// Filter of webhooks. `None` matches everything.
#[derive(Debug, Clone, Default)]
pub struct RecentFilter {
    /// Organization of the connection.
    pub org: Option<OrgId>,
    /// Connection.
    pub connection: Option<ConnectionId>,
    /// Agent.
    pub agent: Option<(OrgId, AgentId)>,
    /// Person in Slack.
    pub user: Option<String>,
    /// Outcome, or a part of the error. Webhooks without an error do not match.
    pub error: Option<String>,
    /// Time and dedup key after which the page begins.
    pub after: Option<(String, String)>,
}

/// Webhook with its outcome.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct RecentWebhook {
    /// Time of the end, or of the enqueueing of an open delivery.
    pub at: String,
    pub dedup_key: String,
    pub connection: Option<String>,
    /// `<organization>/<agent>`.
    pub agent: Option<String>,
    pub kind: Option<String>,
    /// `open`, `dead_letter`, or the outcome of the delivery.
    pub outcome: String,
    pub error: String,
    pub attempts: i32,
    pub channel: Option<String>,
    pub ts: Option<String>,
    pub user: Option<String>,
}

/// Statement on the matching webhooks. `$1` to `$8`: filter. `$9`: days. `$10`: maximum rows of
/// each table. `$11`: maximum open lanes to read.
macro_rules! recent_webhooks {
    ($name:literal, $columns:literal) => {
        concat!(
            "-- ",
            $name,
            "\n with own as materialized (
                 select id from connections where $1::text is null or org_id = $1),
             days as (
                 select array(select ((extract(epoch from now())::bigint / 86400 - n) % 32)::smallint
                                from generate_series(0, $9::integer) n) as slots),
             ended as (
                 select l.at, l.dedup_key, l.connection_id, l.org_id, l.agent_id, l.kind, l.outcome,
                        l.error, l.attempts, l.channel_id, l.ts, l.user_id
                   from delivery_log l
                  where l.slot = any ((select slots from days)::smallint[])
                    and l.at > now() - make_interval(days => $9)
                    and ($1 is null or l.connection_id in (select id from own))
                    and ($2::text is null or l.connection_id = $2)
                    and ($3::text is null or l.org_id = $3) and ($4::text is null or l.agent_id = $4)
                    and ($5::text is null or l.user_id = $5)
                    and ($6::text is null or l.outcome <> 'completed'
                         and (l.outcome = $6 or position($6 in l.error) > 0))
                    and ($7::text is null or (l.at, l.dedup_key) < ($7::timestamptz, $8))
                  order by l.at desc, l.dedup_key desc limit $10),
             dead as (
                 select d.at, d.dedup_key, d.connection_id, d.org_id, d.agent_id, d.kind,
                        'dead_letter' as outcome, d.reason || ': ' || d.last_error as error,
                        d.attempts, d.channel_id, d.ts, d.user_id
                   from dead_letters d
                  where d.stage = 'intake' and d.dedup_key is not null
                    and d.at > now() - make_interval(days => $9)
                    and ($1 is null or d.connection_id in (select id from own))
                    and ($2::text is null or d.connection_id = $2)
                    and ($3::text is null or d.org_id = $3) and ($4::text is null or d.agent_id = $4)
                    and ($5::text is null or d.user_id = $5)
                    and ($6::text is null or $6 = 'dead_letter' or position($6 in d.reason) > 0
                         or position($6 in d.last_error) > 0)
                    and ($7::text is null or (d.at, d.dedup_key) < ($7::timestamptz, $8))
                  order by d.at desc, d.dedup_key desc limit $10),
             open as (
                 select d.inserted_at as at, d.dedup_key, d.connection_id, d.org_id, d.agent_id,
                        d.kind, 'open' as outcome,
                        case when l.head = d.position then l.last_error else '' end as error,
                        case when l.head = d.position then l.attempts else 0 end as attempts,
                        d.channel_id, d.ts, d.user_id
                   from (select * from delivery_lanes l
                          where l.head <= l.tail
                            and ($1 is null or l.connection_id in (select id from own))
                            and ($2::text is null or l.connection_id = $2) limit $11) l
                   join deliveries d on d.connection_id = l.connection_id and d.lane = l.lane
                                    and d.position between l.head and l.head + 100 and d.part = 0
                  where ($3::text is null or d.org_id = $3) and ($4::text is null or d.agent_id = $4)
                    and ($5::text is null or d.user_id = $5)
                    and ($6::text is null or $6 = 'open'
                         or l.head = d.position and l.last_error <> ''
                            and position($6 in l.last_error) > 0)
                    and ($7::text is null or (d.inserted_at, d.dedup_key) < ($7::timestamptz, $8))
                  order by d.inserted_at desc, d.dedup_key desc limit $10),
             found as (
                 select * from ended union all select * from dead union all select * from open)
             select ",
            $columns
        )
    };
}

fn filtered_query<'q>(
    sql: &'static str,
    filter: &'q RecentFilter,
    most: i64,
) -> Query<'q, Postgres, PgArguments> {
    let agent = filter.agent.as_ref();
    sqlx::query(sql)
        .bind(filter.org.as_ref().map(OrgId::as_str))
        .bind(filter.connection.map(|id| id.to_string()))
        .bind(agent.map(|(org, _)| org.as_str()))
        .bind(agent.map(|(_, agent)| agent.as_str()))
        .bind(&filter.user)
        .bind(&filter.error)
        .bind(filter.after.as_ref().map(|(at, _)| at))
        .bind(filter.after.as_ref().map(|(_, key)| key))
        .bind(DAYS)
        .bind(most)
        .bind(OPEN_READ_MAX)
}

impl Store {
    /// Returns webhooks of the last days, newest first, at most `limit`.
    pub async fn recent_webhooks(
        &self,
        filter: &RecentFilter,
        limit: i64,
    ) -> Result<Vec<RecentWebhook>, StoreError> {
        let sql = recent_webhooks!(
            "webhooks.recent",
            "to_jsonb(t) as row from (
                 select at, dedup_key, connection_id as connection,
                        org_id || '/' || agent_id as agent, kind, outcome, error, attempts,
                        channel_id as channel, ts, user_id as user
                   from found order by at desc, dedup_key desc limit $10) t"
        );
        let rows = filtered_query(sql, filter, limit).fetch_all(&self.pool).await?;
        rows.iter().map(json).collect()
    }

    /// Counts webhooks of the last days.
    pub async fn count_recent_webhooks(
        &self,
        filter: &RecentFilter,
    ) -> Result<BoundedCount, StoreError> {
        let sql = recent_webhooks!("webhooks.count_recent", "count(*) as count from found");
        BoundedCount::of(
            filtered_query(sql, filter, BoundedCount::READ_MAX).fetch_one(&self.pool).await?,
        )
    }
}
