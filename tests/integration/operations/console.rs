//! The console: sessions, forms, organizations, lists and their actions. The client runs no
//! scripts.

use reqwest::StatusCode;
use sqlx::AssertSqlSafe;
use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tests::{
    console::{Browser, Form, Page},
    install::key,
    test_env::{App, Size, TestEnv, agent_id},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
const LISTS: [&str; 11] = [
    "/webhooks",
    "/conversations",
    "/agents",
    "/connections",
    "/apps",
    "/link-codes",
    "/bindings",
    "/dead-letters",
    "/outbox-failures",
    "/usage",
    "/audit-log",
];
/// Maximum bytes of a page with its style, compressed.
const PAGE_BYTES_MAX: usize = 60_000;
/// Maximum time of a page. The measured time is below 50 ms; tests share the machine.
const PAGE_WITHIN: Duration = Duration::from_secs(2);

async fn start() -> TestEnv {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_control().await.expect("a control API");
    env
}

/// Creates `count` dead letters, failed messages, open deliveries and ended ones, and other rows of
/// an app.
async fn seed(env: &TestEnv, app: &App, count: i64) {
    let (id, org, agent) = (app.connection.to_string(), app.org.to_string(), agent_id());
    for sql in [
        format!(
            "insert into dead_letters (stage, partition, generation, sequence, subject, connection_id, dedup_key,
                                       reason, last_error, attempts, payload, lane, org_id, agent_id, kind)
             select 'dispatch', 0, 1, n, 'slack.in.0.{id}', '{id}', '{id}:event:EvDead' || n, 'seeded reason', 'error ' || n,
                    1, 'x', n, '{org}', '{agent}', 'event'
               from generate_series(1, {count}) n"
        ),
        format!(
            "insert into outbox_failures (id, connection_id, lane, partition, channel_key, method, dedup_key, request, error,
                                          attempts, created_at)
             select coalesce((select max(id) from outbox_failures), 0) + n, '{id}', n, 0, 'C1', 'chat.postMessage',
                    '{id}:event:EvFailed' || n, 'k1:', 'is_archived', 1, now()
               from generate_series(1, {count}) n"
        ),
        format!(
            "insert into delivery_lanes (connection_id, lane, partition, head, tail, org_id, agent_id, priority, next_at)
             select '{id}', n, 0, 1, 1, '{org}', '{agent}', 1, now() + interval '1 hour' from generate_series(1, {count}) n"
        ),
        format!(
            "insert into deliveries (connection_id, lane, position, partition, generation, sequence, org_id, agent_id,
                                     session, kind, priority, dedup_key, received_at, stored_at, payload, size, schema)
             select '{id}', n, 1, 0, 1, n, '{org}', '{agent}', 1, 'event', 1, '{id}:event:EvOpen' || n, now(), now(), '', 0, 1
               from generate_series(1, {count}) n"
        ),
        format!(
            "insert into delivery_log (slot, at, connection_id, partition, generation, sequence, lane, dedup_key, org_id,
                                       agent_id, kind, outcome, error, attempts, user_id)
             select extract(epoch from now())::bigint / 86400 % 32, now() - n * interval '1 second', '{id}', 0, 1, n, n,
                    '{id}:event:EvLog' || n, '{org}', '{agent}', 'event',
                    case n % 2 when 0 then 'completed' else 'expired' end, case n % 2 when 0 then '' else 'timeout' end, 1,
                    'U' || n % 5
               from generate_series(1, {count}) n"
        ),
        format!("insert into connection_usage (connection_id, hour, webhooks) values ('{id}', date_trunc('hour', now()), 1)"),
        format!(
            "insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id, bound_by)
             values ('{id}', '{}', 'C1', '{org}', '{agent}', 'U1')",
            app.team
        ),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&env.pool).await.expect("seeded");
    }
}

async fn count(env: &TestEnv, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&env.pool).await.expect("a count")
}

/// Without a session each page leads to the login page and back, and nothing else is answered.
#[tokio::test]
async fn requires_session() {
    let env = start().await;
    let mut stranger = Browser::new(&env);
    for path in LISTS.iter().chain(&["/webhooks/x", "/actions/redrive?item=1"]) {
        let page = stranger.get(path).await;
        let target = page.location().expect("a redirect");
        assert!(target.starts_with("/login?to="), "{path}: {target}");
    }
    for action in ["/logout", "/webhooks/x/reveal", "/actions/redrive"] {
        let form = Form { action: action.into(), fields: vec![("token".into(), "x".into())] };
        let page = stranger.send(&form).await;
        assert_eq!(page.status, StatusCode::UNAUTHORIZED, "{action}");
    }
    let back = stranger.get("/dead-letters?text=a%20b").await.location().expect("a redirect");
    let login = stranger.get(&back).await;
    let to = login.form("/login").fields[0].1.clone();
    assert_eq!(to, "/dead-letters?text=a%20b");
    let page = stranger.log_in_with(&key(&env, "viewer", None), &to).await;
    assert_eq!(page.location().as_deref(), Some(to.as_str()));
    assert_eq!(stranger.get(&to).await.status, StatusCode::OK);
    // An address of another site is not a target.
    let page = stranger.log_in_with(&key(&env, "viewer", None), "//evil.example").await;
    assert_eq!(page.location().as_deref(), Some("/"));
}

/// A session ends with its key, by its age, without a request for an hour, and by a click.
#[tokio::test]
async fn ends_sessions() {
    let env = start().await;
    for ended_by in [
        "update api_keys set revoked_at = now()",
        "update api_keys set expires_at = now()",
        "update console_sessions set expires_at = now()",
        "update console_sessions set used_at = now() - interval '61 minutes'",
        "delete from api_keys",
    ] {
        let mut browser = Browser::log_in(&env, "viewer", None).await;
        assert_eq!(browser.get("/").await.status, StatusCode::OK);
        sqlx::query(ended_by).execute(&env.pool).await.expect("changed");
        assert_eq!(browser.get("/").await.status, StatusCode::SEE_OTHER, "{ended_by}");
    }
    let mut browser = Browser::log_in(&env, "viewer", None).await;
    let stolen = browser.cookie.clone();
    let page = browser.get("/").await;
    assert_eq!(browser.send(&page.form("/logout")).await.location().as_deref(), Some("/login"));
    assert_eq!(browser.cookie, None, "the cookie is removed");
    browser.cookie = stolen.clone();
    assert_eq!(browser.get("/").await.status, StatusCode::SEE_OTHER, "the session is over");
    let secret = stolen.expect("a cookie").split_once('=').expect("a value").1.to_owned();
    let stored: Vec<String> = sqlx::query_scalar("select s::text from console_sessions s")
        .fetch_all(&env.pool)
        .await
        .expect("sessions");
    assert!(!stored.concat().contains(&secret) && !env.logs().contains(&secret));
}

/// Wrong keys are refused, and each key has few attempts. Others may log in from the same address,
/// such as that of a proxy.
#[tokio::test]
async fn limits_login_attempts() {
    let env = start().await;
    let mut browser = Browser::new(&env);
    let (mut statuses, wrong) = (Vec::new(), format!("tgk_{:043}", 0));
    for _ in 0..15 {
        statuses.push(browser.log_in_with(&wrong, "/").await.status.as_u16());
    }
    assert_eq!((statuses[0], statuses[14]), (401, 429), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 401).count() <= 11, "{statuses:?}");
    assert_eq!(browser.cookie, None);
    let valid = browser.log_in_with(&key(&env, "viewer", None), "/").await;
    assert_ne!(valid.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(browser.cookie.is_some(), "another person logs in");
}

/// A form of another site, without the session's token or of a viewer changes nothing.
#[tokio::test]
async fn refuses_forged_forms() {
    let env = start().await;
    let app = env.connect().await.expect("a connection");
    seed(&env, &app, 2).await;
    let mut operator = Browser::log_in(&env, "operator", None).await;
    let mut other = Browser::log_in(&env, "operator", None).await;
    let mut viewer = Browser::log_in(&env, "viewer", None).await;
    let list = operator.get("/dead-letters").await;
    let confirm = operator.get(&list.link("Redrive")).await;
    let form = confirm.form("/actions/redrive");
    assert_eq!(operator.send_from("cross-site", &form).await.status, StatusCode::FORBIDDEN);
    assert_eq!(other.send(&form).await.status, StatusCode::FORBIDDEN, "another session's token");
    let mut without = form.clone();
    without.fields.retain(|(name, _)| name != "token");
    assert_eq!(operator.send(&without).await.status, StatusCode::FORBIDDEN);
    let page = viewer.get("/dead-letters").await;
    assert!(page.links("Redrive").is_empty() && !page.text.contains("type=\"checkbox\""));
    assert_eq!(viewer.get(&list.link("Redrive")).await.status, StatusCode::FORBIDDEN);
    let token = viewer.get("/").await.form("/logout").fields[0].clone();
    let mut as_viewer = without.clone();
    as_viewer.fields.push(token);
    assert_eq!(viewer.send(&as_viewer).await.status, StatusCode::FORBIDDEN);
    assert_eq!(count(&env, "select count(*) from dead_letters").await, 2);
    let page = operator.submit(&form).await;
    assert!(page.text.contains("1 dead letters redriven."), "{}", page.text);
    assert_eq!(count(&env, "select count(*) from dead_letters").await, 1);
}

/// People of an organization see and change nothing of another one.
#[tokio::test]
async fn hides_other_organizations() {
    let env = start().await;
    let own = env.connect().await.expect("a connection");
    let other = env.connect().await.expect("a connection");
    for app in [&own, &other] {
        seed(&env, app, 3).await;
    }
    let org = Some(own.org.as_str());
    let mut browser = Browser::log_in(&env, "owner", org).await;
    let mut everything = Browser::log_in(&env, "owner", None).await;
    let foreign = other.connection.to_string();
    let mentioned = [foreign.as_str(), other.org.as_str()];
    let mut seen = 0;
    for path in LISTS.iter().chain(&["/"]) {
        let page = browser.get(path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}: {}", page.text);
        for word in mentioned {
            assert!(!page.text.contains(word), "{path} shows {word}");
        }
        seen += usize::from(everything.get(path).await.text.contains(&foreign));
    }
    assert!(seen >= 5, "the lists of all organizations show it: {seen}");
    let paths = [
        format!("/dead-letters?organization={}", other.org),
        format!("/bindings?connection={foreign}"),
        format!("/webhooks/{foreign}%3Aevent%3AEvDead1"),
        format!("/webhooks?q={foreign}%3Aevent%3AEvDead1"),
        "/webhooks?q=EvNever".to_owned(),
    ];
    for path in paths {
        let page = browser.open(&path).await;
        assert_eq!(page.status, StatusCode::NOT_FOUND, "{path}: {}", page.text);
    }
    let page = browser.get(&format!("/dead-letters?connection={foreign}")).await;
    assert!(page.text.contains("0 dead letters"), "{}", page.text);

    let before = env.tidegate(&["connections", "list", "--json"]).expect("printed");
    let (agent, ids) = (agent_id(), "select min(id)::text from dead_letters where connection_id");
    let ids = format!("{ids} = '{foreign}'");
    let dead: String =
        sqlx::query_scalar(AssertSqlSafe(ids)).fetch_one(&env.pool).await.expect("an id");
    for (action, item) in [
        ("redrive", dead.clone()),
        ("delete-dead-letters", dead),
        ("pause-agent", format!("{}/{agent}", other.org)),
        ("disable", foreign.clone()),
        ("pause-sending", foreign.clone()),
        ("cancel", format!("{foreign}.0000000000000001")),
        ("skip", format!("{foreign}.0000000000000001")),
        ("unbind", format!("{foreign}/{}/C1", other.team)),
    ] {
        let confirm =
            browser.get(&format!("/actions/{action}?item={item}&back=/dead-letters")).await;
        let page = browser.submit(&confirm.form(&format!("/actions/{action}"))).await;
        let is_refused = page.status == StatusCode::NOT_FOUND || page.text.contains(">0 ");
        assert!(is_refused, "{action}: {}", page.text);
    }
    for sql in [
        "select count(*) from dead_letters",
        "select count(*) from deliveries",
        "select count(*) from channel_bindings",
    ] {
        assert!([2, 6].contains(&count(&env, sql).await), "{sql}");
    }
    assert_eq!(count(&env, "select count(*) from agents where paused_at is not null").await, 0);
    assert_eq!(env.tidegate(&["connections", "list", "--json"]).expect("printed"), before);
}

/// Follows the pages of a list. Returns all items and the first page.
async fn walk(browser: &mut Browser, path: &str) -> (Vec<String>, Page) {
    let first = browser.get(path).await;
    let (mut items, mut next) = (Vec::new(), first.links("Next page").pop());
    let items_of = |page: &Page| -> Vec<String> {
        let values = page.text.split("name=\"item\" value=\"").skip(1);
        values.map(|rest| rest.split('"').next().unwrap_or_default().to_owned()).collect()
    };
    items.extend(items_of(&first));
    while let Some(path) = next {
        let page = browser.get(&path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}");
        items.extend(items_of(&page));
        next = page.links("Next page").pop();
    }
    (items, first)
}

/// Each list has filters, a count, pages with each row once, and texts for no rows and for errors.
/// Its page is small and quick.
#[tokio::test]
async fn pages_and_filters_lists() {
    let env = start().await;
    let mut browser = Browser::log_in(&env, "operator", None).await;
    for path in LISTS {
        let page = browser.get(path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}: {}", page.text);
        let is_empty = !page.text.contains("<table>");
        assert!(is_empty == page.text.contains("class=\"note\""), "{path}: an empty state");
        let wrong = browser.get(&format!("{path}?cursor=x&connection=y")).await;
        let expected = if path == "/apps" { [404; 2] } else { [400, 404] };
        assert!(expected.contains(&wrong.status.as_u16()), "{path}: {}", wrong.status);
        assert!(wrong.text.contains("role=\"alert\""), "{path}: an error state");
    }
    let app = env.connect().await.expect("a connection");
    seed(&env, &app, 120).await;
    for path in ["/dead-letters", "/outbox-failures", "/conversations"] {
        let (items, first) = walk(&mut browser, path).await;
        assert_eq!(items.len(), 120, "{path}");
        assert_eq!(items.iter().collect::<BTreeSet<_>>().len(), 120, "{path}");
        assert!(first.text.contains(">120 "), "{path}: a count: {}", first.text);
        let filtered = browser.get(&format!("{path}?connection={:032x}", 7)).await;
        assert!(filtered.text.contains(">0 "), "{path}: {}", filtered.text);
    }
    let (items, _) = walk(&mut browser, "/dead-letters?text=error%2011").await;
    assert_eq!(items.len(), 11, "11 and 110 to 119: {items:?}");
    let some = browser.get("/webhooks?error=timeout&user=U1").await;
    assert!(some.text.contains(">12 webhooks"), "{}", some.text);
    let of_agent = browser.get(&format!("/webhooks?agent={}/{}", app.org, agent_id())).await;
    assert!(of_agent.text.contains(">240 webhooks"), "ended and open: {}", of_agent.text);
    for path in LISTS {
        let begun = Instant::now();
        let page = browser.get(path).await;
        let took = begun.elapsed();
        assert!(took <= PAGE_WITHIN, "{path} took {took:?}");
        let style = browser.get("/console.css").await;
        let bytes = compressed(&(page.text + &style.text));
        println!("{path}: {bytes} bytes compressed, {took:?}");
        assert!(bytes <= PAGE_BYTES_MAX, "{path}: {bytes}");
        let policy = page.headers["content-security-policy"].to_str().expect("text");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(page.headers["cache-control"], "no-store");
    }
}

fn compressed(text: &str) -> usize {
    let gzip = Command::new("gzip").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut gzip = gzip.expect("gzip");
    let mut input = gzip.stdin.take().expect("its input");
    let text = text.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = gzip.wait_with_output().expect("its output");
    writer.join().expect("no panic").expect("written");
    output.stdout.len()
}

/// "All that match" changes the rows that were counted, and none that came later.
#[tokio::test]
async fn changes_confirmed_rows_only() {
    let env = start().await;
    let app = env.connect().await.expect("a connection");
    seed(&env, &app, 60).await;
    let mut browser = Browser::log_in(&env, "operator", None).await;
    let list = browser.get("/dead-letters?text=seeded").await;
    let confirm = browser.get(&list.link("Delete all that match")).await;
    assert!(confirm.text.contains("60 that match"), "{}", confirm.text);
    seed_one_more(&env, &app).await;
    let page = browser.submit(&confirm.form("/actions/delete-dead-letters")).await;
    assert!(page.text.contains("60 dead letters deleted."), "{}", page.text);
    let left = "select count(*) from dead_letters where last_error = 'later'";
    assert_eq!(
        (count(&env, left).await, count(&env, "select count(*) from dead_letters").await),
        (1, 1)
    );
    let logged = "select count(*) from audit_log
                   where action = 'dead_letters.delete' and actor like 'api-key:%'";
    assert_eq!(count(&env, logged).await, 1, "one operation");

    let list = browser.get("/conversations").await;
    let confirm = browser.get(&list.link("Cancel all that match")).await;
    let page = browser.submit(&confirm.form("/actions/cancel")).await;
    assert!(page.text.contains("60 deliveries cancelled."), "{}", page.text);
    assert_eq!(count(&env, "select count(*) from deliveries").await, 0);

    let nothing = browser.get("/actions/redrive?back=%2Fdead-letters").await;
    assert_eq!(nothing.status, StatusCode::BAD_REQUEST, "nothing is selected");
}

async fn seed_one_more(env: &TestEnv, app: &App) {
    let sql = "insert into dead_letters (stage, partition, generation, sequence, subject, connection_id, reason, last_error,
                                         attempts)
               values ('intake', 0, 1, 1000, '', $1, 'seeded reason', 'later', 1)";
    let added = sqlx::query(sql).bind(app.connection.to_string()).execute(&env.pool).await;
    added.expect("seeded");
}

/// Agents, connections and link codes are changed from their lists, each time after a
/// confirmation and with an entry in the audit log.
#[tokio::test]
async fn changes_objects_from_lists() {
    let env = start().await;
    let app = env.connect().await.expect("a connection");
    let mut browser = Browser::log_in(&env, "operator", Some(app.org.as_str())).await;
    for (path, label, action, sql) in [
        (
            "/agents",
            "Pause",
            "pause-agent",
            "select count(*) from agents where paused_at is not null",
        ),
        (
            "/agents",
            "Resume",
            "resume-agent",
            "select count(*) from agents where paused_at is null",
        ),
        (
            "/connections",
            "Disable",
            "disable",
            "select count(*) from connections where status = 'stopped'",
        ),
        (
            "/connections",
            "Enable",
            "enable",
            "select count(*) from connections where status = 'active'",
        ),
        (
            "/connections",
            "Pause sending",
            "pause-sending",
            "select count(*) from connections where sending_paused_at is not null",
        ),
    ] {
        let before = count(&env, "select count(*) from audit_log").await;
        let list = browser.get(path).await;
        let confirm = browser.get(&list.link(label)).await;
        assert_eq!(
            count(&env, "select count(*) from audit_log").await,
            before,
            "{label}: asked first"
        );
        let page = browser.submit(&confirm.form(&format!("/actions/{action}"))).await;
        assert_eq!(page.status, StatusCode::OK, "{label}: {}", page.text);
        assert_eq!(count(&env, sql).await, 1, "{label}");
        assert_eq!(count(&env, "select count(*) from audit_log").await, before + 1, "{label}");
    }
    let overview = browser.get("/").await;
    assert!(overview.text.contains("sending is paused"), "{}", overview.text);
}
