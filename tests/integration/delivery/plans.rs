//! Costs of the statements of workers in a filled database.
//!
//! The statements are those of real workers, with the plans and counts that Postgres logs
//! (`auto_explain`): first of workers whose plans were made while the tables were small, then of
//! workers that start with full ones.

use serde_json::Value;
use shared::stream::Partition;
use std::{collections::BTreeMap, time::Duration};
use tests::{
    eventually::eventually,
    size::ci_or_full,
    slack::webhook::Webhook,
    test_env::{App, SMALL, Size, TIMEOUT, TestEnv, agent_id},
};

/// Maximum number of rows that a statement reads.
const ROWS_MAX: u64 = 1_000;
/// Maximum number of pages that a statement reads, including dead rows: nothing is vacuumed.
const PAGES_MAX: u64 = 3_000;
/// Statements that read more, with their maximum rows: they work in pages or count up to a bound,
/// on one worker at a time.
const PAGES: [(&str, u64); 10] = [
    ("backlog.count_deliveries", 2 * 20_000),
    ("backlog.count_dead_letters", 2 * 20_000),
    ("backlog.count_messages", 2 * 20_000),
    ("backlog.count_failures", 2 * 20_000),
    ("backlog.outbox", 2 * 10_001),
    ("connections.versions", 2 * 1_000),
    ("connections.missing", 2 * 1_000),
    ("agent_health.count", 2 * 1_000),
    ("retention.count_capped", 2 * 20_000),
    ("retention.delete_capped", 2 * 5_000),
];
/// Rows of the tables when the first plans are made.
const FEW_ROWS: i64 = 200;
/// Interval of retention.
const ROUND: Duration = Duration::from_secs(12);
/// Channel of the tenants whose messages cause the statements.
const CHANNEL: &str = "D1";

/// Cost of a statement, as logged by Postgres.
#[derive(Debug, Default, Clone)]
pub struct Cost {
    /// Number of executions.
    pub sent: usize,
    /// Maximum number of rows.
    pub rows: u64,
    /// Maximum number of pages.
    pub pages: u64,
    /// Maximum time in ms, with the cost of its measurement.
    pub ms: f64,
    /// Plan with the most rows.
    pub plan: String,
}

/// Returns the rows that a node of a plan and its children read.
fn rows_read(node: &Value) -> u64 {
    let number = |name: &str| node[name].as_f64().unwrap_or_default();
    let kind = node["Node Type"].as_str().unwrap_or_default();
    let scans = ["Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Tid Scan"];
    let own = if scans.contains(&kind) {
        let each = number("Actual Rows")
            + number("Rows Removed by Filter")
            + number("Rows Removed by Index Recheck");
        (each * number("Actual Loops")) as u64
    } else {
        0
    };
    let children = node["Plans"].as_array().into_iter().flatten();
    own + children.map(rows_read).sum::<u64>()
}

/// Returns the costs of all named statements in a log of Postgres.
pub fn costs(log: &str) -> BTreeMap<String, Cost> {
    let mut costs = BTreeMap::<String, Cost>::new();
    let mut lines = log.lines().peekable();
    let mut mixed = 0;
    while let Some(line) = lines.next() {
        if !line.ends_with("plan:") {
            continue;
        }
        let ms = line.split("duration: ").nth(1).and_then(|rest| rest.split(' ').next());
        let ms: f64 = ms.and_then(|ms| ms.parse().ok()).unwrap_or_default();
        let mut json = String::new();
        while let Some(more) = lines.next_if(|line| line.starts_with('\t')) {
            json.push_str(more);
        }
        // Postgres writes long entries in pieces: those of two sessions may mix, and the last one
        // may be incomplete.
        let Ok(plan) = serde_json::from_str::<Value>(&json) else {
            mixed += 1;
            continue;
        };
        let text = plan["Query Text"].as_str().unwrap_or_default();
        let Some(name) = text.strip_prefix("-- ").and_then(|rest| rest.split_whitespace().next())
        else {
            continue;
        };
        let root = &plan["Plan"];
        let pages = ["Shared Hit Blocks", "Shared Read Blocks"].map(|name| root[name].as_u64());
        let pages = pages.into_iter().flatten().sum();
        let cost = costs.entry(name.to_owned()).or_default();
        let rows = rows_read(root);
        if rows >= cost.rows {
            cost.plan = serde_json::to_string_pretty(root).expect("JSON");
        }
        (cost.sent, cost.rows) = (cost.sent + 1, cost.rows.max(rows));
        (cost.pages, cost.ms) = (cost.pages.max(pages), cost.ms.max(ms));
    }
    let read: usize = costs.values().map(|cost| cost.sent).sum();
    assert!(mixed * 100 <= read, "{mixed} entries of the log are not JSON, {read} are");
    costs
}

pub async fn execute(env: &TestEnv, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&env.pool).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Inserts rows as workers write them, with invalid payloads: `count` conversations, and as many
/// messages in one of them, wait for A's agent in one queue of B's partition. The logs get `count`
/// rows each. Run controls stay recent.
async fn fill(env: &TestEnv, a: &App, b: &App, count: i64) {
    let partition = Partition::of(b.connection, Some(CHANNEL)).number() as i16;
    // Each row would create agent slots or notify all workers.
    execute(env, "alter table agents disable trigger user").await;
    execute(env, "alter table connections disable trigger user").await;
    for sql in [
        "insert into agents (org_id, id, url, secret) select $1, 'other-' || n, '', '' from generate_series(1, $2) n",
        "insert into agent_slots (org_id, agent_id, n) select $1, 'other-' || n, 1 from generate_series(1, $2) n",
        "insert into connections (id, org_id, app_id, team_id, signing_secret)
         select lpad(to_hex(n), 16, '0') || lpad(to_hex(hashtext($1)), 16, '0'), $1, 'A-' || $1, 'T' || n, '' from generate_series(1, $2) n",
    ] {
        // A tenth of the rows: the directory is notified of each connection.
        let filled = sqlx::query(sql).bind(a.org.as_str()).bind(count / 10);
        let filled = filled.execute(&env.pool).await;
        filled.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    execute(env, "alter table agents enable trigger user").await;
    execute(env, "alter table connections enable trigger user").await;
    for sql in [
        // The agent is unavailable, and the next probe is an hour away.
        "insert into agent_health (org_id, agent_id, probe_at) select $4, $5, now() + interval '1 h'
          where $1 <> '' and $2 >= 0::smallint and $3 > 0",
        "insert into deliveries (connection_id, lane, position, partition, generation, sequence, org_id, agent_id, session,
                                 kind, priority, dedup_key, received_at, stored_at, payload, size, schema)
         select $1, case when n <= $3 then n else 1 end, case when n <= $3 then 1 else n - $3 + 1 end, $2, 1, n, $4, $5, 1,
                'event', 1, $1 || ':event:Ev' || n, now(), now(), decode(repeat('00', 700), 'hex'), 700, 1
           from generate_series(1, 2 * $3 - 1) n",
        "insert into delivery_lanes (connection_id, lane, partition, head, tail, org_id, agent_id, priority, next_at)
         select $1, n, $2, 1, case n when 1 then $3 else 1 end, $4, $5, 1, now() from generate_series(1, $3) n",
        "insert into processed_keys (slot, partition, day, key, generation, sequence, outcome)
         select day % 8, $2, day, decode(md5($1 || $4 || $5 || n), 'hex'), 1, n, 1
           from generate_series(1, $3) n, lateral (select extract(epoch from now())::integer / 86400 as day) d",
        "insert into delivery_log (slot, connection_id, partition, generation, sequence, lane, dedup_key, org_id, agent_id,
                                   kind, outcome, attempts)
         select extract(epoch from now())::bigint / 86400 % 32, $1, $2, 1, n, n, 'Ev' || n, $4, $5, 'event', 'completed', 1
           from generate_series(1, $3) n",
        "insert into ignored_webhooks (slot, connection_id, partition, generation, sequence, dedup_key, reason)
         select extract(epoch from now())::bigint / 86400 % 8, $1, $2, 1, n, $4 || $5 || n, 'no_agent'
           from generate_series(1, $3) n",
        "insert into dead_letters (stage, partition, generation, sequence, subject, connection_id, lane, org_id, agent_id,
                                   session, kind, dedup_key, reason, attempts, payload)
         select 'dispatch', $2, 1, n, 'x', $1, n, $4, $5, 1, 'event', 'Ev' || n, 'x', 1, '\\x00'
           from generate_series(1, $3) n",
        "insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id, bound_by)
         select $1, 'T1', 'C' || n, $4, $5, 'U1' from generate_series(1, $3) n where $2 >= 0::smallint",
        "insert into known_channels (connection_id, channel_id)
         select $1, 'C' || n from generate_series(1, $3) n where $2 >= 0::smallint and $4 || $5 <> ''",
        "insert into conversation_sessions (connection_id, team_id, channel_id, number)
         select $1, 'T1', 'C' || n, 2 from generate_series(1, $3) n where $2 >= 0::smallint and $4 || $5 <> ''",
        "insert into runs (connection_id, lane, position, id, org_id, agent_id, channel_id, thread_ts, trigger_ts)
         select $1, n, 1, 'run_' || n, $4, $5, 'C1', '1.1', '1.1' from generate_series(1, $3) n where $2 >= 0::smallint",
        "insert into run_parts (connection_id, lane, position, n, begins, payload)
         select $1, n, 1, 1, true, decode(repeat('00', 700), 'hex') from generate_series(1, $3) n
          where $2 >= 0::smallint and $4 || $5 <> ''",
        "insert into run_controls (connection_id, channel_id, thread_ts, ts, at)
         select $1, 'C' || n, '1.1', '2.1', now() + interval '1 h' from generate_series(1, $3) n
          where $2 >= 0::smallint and $4 || $5 <> ''",
        "insert into deleted_messages (connection_id, channel_id, ts, at)
         select $1, 'C1', n || '.1', now() + interval '1 h' from generate_series(1, $3) n
          where $2 >= 0::smallint and $4 || $5 <> ''",
        // A channel that is paced for an hour.
        "insert into outbox_channels (connection_id, channel_key, partition, pending, next_at, paced_until)
         select $1, 'C1', $2, $3, now() + interval '1 h', now() + interval '1 h' where $4 || $5 <> ''",
        "insert into outbox_lanes (connection_id, lane, partition, head, tail, channel_key, turn, next_at)
         select $1, n, $2, 1, 1, 'C1', nextval('outbox_turns'), now() from generate_series(1, $3) n where $4 || $5 <> ''",
        "insert into outbox (connection_id, lane, position, partition, channel_key, method, dedup_key, request)
         select $1, n, 1, $2, 'C1', 'chat.postMessage', $4 || $5 || n, 'x' from generate_series(1, $3) n",
    ] {
        sqlx::query(sql)
            .bind(a.connection.to_string())
            .bind(partition)
            .bind(count)
            .bind(a.org.as_str())
            .bind(agent_id().as_str())
            .execute(&env.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// Sends messages and commands of B, one of which uses a link code, and waits for the replies.
async fn send_traffic(env: &TestEnv, b: &App) {
    let code = env.create_link_code(b, &[shared::domain::Surface::Dm]).await.expect("a code");
    let link = format!("link {code}");
    for text in ["help", "help", "help", "help", "help", "help", &link] {
        let message = Webhook::message(&env.slack, b, CHANNEL, "U1", text);
        let command = Webhook::command(&env.slack, b, CHANNEL, "U1", "/lobu", text);
        for webhook in [&message, &command] {
            assert_eq!(env.send(b, webhook).await.expect("an answer").status, 200);
        }
        env.slack
            .wait_for_receipt("the reply to the command", |r| command.response_url.ends_with(&r.to))
            .await;
        let handled = async || env.find_outcome(&message.dedup_key).await;
        eventually("the message is processed", TIMEOUT, handled).await;
    }
    let streamed = Webhook::message(&env.slack, b, CHANNEL, "U1", "stream:20:50:8 please");
    assert_eq!(env.send(b, &streamed).await.expect("an answer").status, 200);
    let ended = async || env.find_outcome(&streamed.dedup_key).await;
    eventually("the streamed answer ends", TIMEOUT, ended).await;
}

/// Prints a table of costs.
pub fn print_costs(when: &str, costs: &BTreeMap<String, Cost>) {
    println!("{when}:\n{:>7} {:>8} {:>8} {:>9}  statement", "sent", "rows", "pages", "ms");
    for (name, cost) in costs {
        println!("{:>7} {:>8} {:>8} {:>9.1}  {name}", cost.sent, cost.rows, cost.pages, cost.ms);
    }
}

/// Checks the costs logged from an offset on.
fn check_costs(env: &TestEnv, from: usize, when: &str) {
    let log = env.postgres.process().log();
    let costs = costs(&log[from..]);
    print_costs(when, &costs);
    for needed in [
        "deliveries.claim",
        "intake.commit",
        "outbox.claim",
        "backlog.outbox",
        "runs.begin",
        "runs.save",
        "run_controls.find",
        "run_controls.recent",
    ] {
        assert!(costs.contains_key(needed), "{when}: {needed} was not sent");
    }
    for (name, cost) in costs.iter() {
        let page = PAGES.iter().find(|(page, _)| page == name).map(|(_, rows)| *rows);
        assert!(
            cost.rows <= page.unwrap_or(ROWS_MAX) && (page.is_some() || cost.pages <= PAGES_MAX),
            "{when}: {name} read {} rows and {} pages: {}",
            cost.rows,
            cost.pages,
            cost.plan
        );
    }
}

/// Maximum time until deliveries are attempted again: all may have just been attempted.
const REATTEMPTED_WITHIN: Duration = Duration::from_secs(90);

/// Makes Postgres log the plan and costs of each statement. The tests analyze the tables
/// themselves.
pub async fn log_plans(env: &TestEnv) {
    let mut session = env.pool.acquire().await.expect("a session");
    for setting in [
        "load 'auto_explain'", // otherwise its settings are unknown
        "alter system set session_preload_libraries = 'auto_explain'",
        "alter system set auto_explain.log_min_duration = 0",
        "alter system set auto_explain.log_analyze = on",
        "alter system set auto_explain.log_buffers = on",
        "alter system set auto_explain.log_timing = off",
        "alter system set auto_explain.log_format = json",
        "alter system set autovacuum = off",
    ] {
        let set = sqlx::raw_sql(setting).execute(&mut *session).await;
        set.unwrap_or_else(|error| panic!("{setting}: {error}"));
    }
}

/// No statement of a worker reads more rows or pages than its limit, by plans of small tables and
/// by plans of full ones.
#[tokio::test(flavor = "multi_thread")]
async fn reads_few_rows_per_statement() {
    let size = Size { own_postgres: true, ..SMALL };
    let mut env = TestEnv::without_processes(size).await.expect("servers");
    log_plans(&env).await;
    env.postgres.restart().await.expect("Postgres");
    env.start_processes().await.expect("processes");
    let a = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let b = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    send_traffic(&env, &b).await;

    let few = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    fill(&env, &few, &b, FEW_ROWS).await;
    execute(&env, "analyze").await; // makes sessions plan again
    send_traffic(&env, &b).await;
    fill(&env, &a, &b, ci_or_full(20_000, 1_000_000)).await;
    check_statements(&env, &b, "plans of small tables").await;
    execute(&env, "analyze").await;
    env.workers[0].process.restart().expect("it starts again");
    env.wait_until_balanced().await.expect("it owns all partitions");
    check_statements(&env, &b, "plans of full tables").await;
}

/// Checks the statements while A's agent is unavailable, and while its deliveries are attempted,
/// none of which can be decrypted.
async fn check_statements(env: &TestEnv, b: &App, when: &str) {
    let from = env.postgres.process().log().len();
    send_traffic(env, b).await;
    let began: time::OffsetDateTime =
        sqlx::query_scalar("select now()").fetch_one(&env.pool).await.expect("the time");
    eventually("some deliveries are attempted", REATTEMPTED_WITHIN, async || {
        // The circuit opens again, because messages of B fail.
        execute(env, "delete from agent_health").await;
        // A delivery that can't be decrypted is due again a minute after its attempt.
        let attempted = "select count(*) from delivery_lanes
                          where next_at > $1 + interval '59 s' and next_at < 'infinity'";
        let attempted: i64 =
            sqlx::query_scalar(attempted).bind(began).fetch_one(&env.pool).await.ok()?;
        (attempted >= 200).then_some(())
    })
    .await;
    send_traffic(env, b).await;
    tokio::time::sleep(ROUND).await;
    check_costs(env, from, when);
}
