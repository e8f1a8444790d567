//! On a filled database no statement of a worker reads more rows than it has use for: nothing is found by scanning.
//!
//! The statements are those that real workers send, with the plans and counts that Postgres itself logs for them
//! (`auto_explain`): first by workers whose plans were made while the tables were empty, then by workers that start on full
//! ones.

use serde_json::Value;
use shared::partition::Partition;
use std::{collections::BTreeMap, time::Duration};
use tests::{
    size::ci_or_full,
    slack::webhook::Webhook,
    until::until,
    world::{App, SMALL, SOON, Size, World, agent_id},
};

/// Rows that a statement reads at most.
const ROWS_MAX: u64 = 1_000;
/// Pages that it looks at at most: nobody clears dead rows away meanwhile.
const PAGES_MAX: u64 = 3_000;
/// Statements that find nothing and so read everything: one counts all lanes every 10 s, the other compares all connections
/// with the directory once a minute, both on one worker at a time.
const READ_ALL: [&str; 2] = ["retention.backlog", "connections.versions"];
/// Retention comes round within this.
const ROUND: Duration = Duration::from_secs(12);
/// The channel of the tenants whose messages make the workers' statements be sent.
const CHANNEL: &str = "D1";

/// What Postgres logged of a statement.
#[derive(Debug, Default, Clone)]
struct Cost {
    /// How often it was sent.
    sent: usize,
    /// Rows that it read at most.
    rows: u64,
    /// Pages that it looked at at most.
    pages: u64,
    /// The plan by which it read most rows.
    plan: String,
}

/// Rows that a node of a plan reads itself, and its children.
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

/// The costs of all named statements in a log of Postgres, by name.
fn costs(log: &str) -> BTreeMap<String, Cost> {
    let mut costs = BTreeMap::<String, Cost>::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.ends_with("plan:") {
            continue;
        }
        let mut json = String::new();
        while let Some(more) = lines.next_if(|line| line.starts_with('\t')) {
            json.push_str(more);
        }
        let plan: Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
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
        cost.pages = cost.pages.max(pages);
    }
    costs
}

async fn run(world: &World, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&world.pool).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Rows as workers write them, but for what is sealed, which nobody opens: so many conversations and so many messages in one
/// more wait for A's agent, in one queue of B's partition; and as much history.
async fn fill(world: &World, a: &App, b: &App, count: i64) {
    let partition = Partition::of(b.connection, Some(CHANNEL)).number() as i16;
    // Each would make slots for an agent, or tell all workers of a connection.
    run(world, "alter table agents disable trigger user").await;
    run(world, "alter table connections disable trigger user").await;
    for sql in [
        "insert into agents (org_id, id, url, secret) select $1, 'other-' || n, '', '' from generate_series(1, $2) n",
        "insert into agent_slots (org_id, agent_id, n) select $1, 'other-' || n, 1 from generate_series(1, $2) n",
        "insert into connections (id, org_id, app_id, team_id, signing_secret)
         select lpad(to_hex(n), 32, '0'), $1, 'A1', 'T' || n, '' from generate_series(1, $2) n",
    ] {
        // A tenth: the directory is told of each connection.
        let filled = sqlx::query(sql).bind(a.org.as_str()).bind(count / 10);
        let filled = filled.execute(&world.pool).await;
        filled.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    run(world, "alter table agents enable trigger user").await;
    run(world, "alter table connections enable trigger user").await;
    for sql in [
        // Its agent is away, and the next probe is far.
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
        // A channel that Slack has closed for an hour.
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
            .execute(&world.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// Messages, commands and a link of B, answered.
async fn traffic(world: &World, b: &App) {
    let code = world.mint(b, &[shared::types::Surface::Dm]).await.expect("a code");
    let link = format!("link {code}");
    for text in ["help", "help", "help", "help", "help", "help", &link] {
        let message = Webhook::message(&world.slack, b, CHANNEL, "U1", text);
        let command = Webhook::command(&world.slack, b, CHANNEL, "U1", "/lobu", text);
        for webhook in [&message, &command] {
            assert_eq!(world.send(b, webhook).await.expect("an answer").status, 200);
        }
        world.slack.told("the person hears", |r| command.response_url.ends_with(&r.to)).await;
        let handled = async || world.look(&message.dedupe).await;
        until("the message is handled", SOON, handled).await;
    }
}

/// What was logged from here on, judged.
fn judge(world: &World, from: usize, when: &str) {
    let log = world.postgres.process().log();
    let costs = costs(&log[from..]);
    println!("{when}:\n{:>7} {:>8} {:>8}  statement", "sent", "rows", "pages");
    for (name, cost) in &costs {
        println!("{:>7} {:>8} {:>8}  {name}", cost.sent, cost.rows, cost.pages);
    }
    for needed in ["deliveries.claim", "intake.commit", "outbox.claim", "retention.backlog"] {
        assert!(costs.contains_key(needed), "{when}: {needed} was not sent");
    }
    for (name, cost) in costs.iter().filter(|(name, _)| !READ_ALL.contains(&name.as_str())) {
        assert!(
            cost.rows <= ROWS_MAX && cost.pages <= PAGES_MAX,
            "{when}: {name} read {} rows and {} pages: {}",
            cost.rows,
            cost.pages,
            cost.plan
        );
    }
}

/// All may have been attempted a moment ago.
const REATTEMPTED_WITHIN: Duration = Duration::from_secs(90);

/// Makes Postgres log the plan of each statement with what it read; what it knows of the tables is what the test says.
async fn log_plans(world: &World) {
    let mut session = world.pool.acquire().await.expect("a session");
    for setting in [
        "load 'auto_explain'", // or its settings are unknown
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

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_workers_read_few_rows_of_many() {
    let size = Size { own_postgres: true, ..SMALL };
    let mut world = World::without_processes(size).await.expect("servers");
    log_plans(&world).await;
    world.postgres.restart().await.expect("Postgres");
    world.start_processes().await.expect("processes");
    let a = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let b = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    traffic(&world, &b).await;

    fill(&world, &a, &b, ci_or_full(20_000, 1_000_000)).await;
    observed(&world, &b, "plans of empty tables").await;
    run(&world, "analyze").await;
    world.workers[0].process.restart().expect("it starts again");
    world.settled().await.expect("it owns all partitions");
    observed(&world, &b, "plans of full tables").await;
}

/// Looks at what is sent while A's agent is away, and while its deliveries are attempted: none of them can be opened.
async fn observed(world: &World, b: &App, when: &str) {
    let from = world.postgres.process().log().len();
    traffic(world, b).await;
    let began: time::OffsetDateTime =
        sqlx::query_scalar("select now()").fetch_one(&world.pool).await.expect("the time");
    until("some were attempted", REATTEMPTED_WITHIN, async || {
        // The circuit opens again, since messages of B fail.
        run(world, "delete from agent_health").await;
        // A delivery that can't be opened is due again a minute after its attempt.
        let attempted = "select count(*) from delivery_lanes
                          where next_at > $1 + interval '59 s' and next_at < 'infinity'";
        let attempted: i64 =
            sqlx::query_scalar(attempted).bind(began).fetch_one(&world.pool).await.ok()?;
        (attempted >= 200).then_some(())
    })
    .await;
    traffic(world, b).await;
    tokio::time::sleep(ROUND).await;
    judge(world, from, when);
}
