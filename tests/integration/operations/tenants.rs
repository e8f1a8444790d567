//! Isolation of tenants from each other, and deletion of one.

use futures_util::{FutureExt, future::LocalBoxFuture};
use serde_json::{Value, json};
use shared::{
    directory::{Directory, DirectoryEntry},
    domain::{AgentId, AgentMode, ConnectionId, OrgId, Platform, Surface},
    runtime::config,
    secrets::Secret,
    store::{NewAgent, NewConnection, NewLinkCode},
    stream::DedupKey,
};
use std::time::Duration;
use tests::{
    agent::Agent,
    eventually::{eventually, try_eventually},
    slack::{Answer, unix_now, webhook::Webhook},
    test_env::{App, PAIR, SHARED_APP, SMALL, TIMEOUT, TestEnv, agent_id, new_agent},
};

async fn send_and_wait(env: &TestEnv, app: &App, text: &str) {
    let webhook = Webhook::message(&env.slack, app, "C1", "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    let expected = format!("I heard: {text}");
    env.slack.wait_for_receipt("the answer", |receipt| receipt.text() == expected).await;
}

/// Returns the tables with a row that names the connection, except for its tombstone, records of
/// purges, the last dedup key of a partition, and the audit log.
async fn tables_naming(env: &TestEnv, id: &str) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables
          where table_schema = 'public' and table_type = 'BASE TABLE'
            and table_name not in ('deleted_connections', 'stream_removals', 'partition_cursors', 'audit_log')",
    )
    .fetch_all(&env.pool)
    .await
    .expect("tables");
    let mut found = Vec::new();
    for table in tables {
        let sql = format!("select count(*) from {table} t where t::text like '%' || $1 || '%'");
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .fetch_one(&env.pool)
            .await
            .expect("a count");
        if count > 0 {
            found.push(table);
        }
    }
    found
}

/// A deleted connection is gone from Postgres, the directory and the stream. Another connection
/// stays.
#[tokio::test]
async fn deletes_connection_everywhere() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let (app, other) = (env.declare().expect("one"), env.declare().expect("another"));
    for app in [&app, &other] {
        let code = env.create_link_code_by_cli(app, Surface::Channel).expect("a code");
        env.create_link_code_by_cli(app, Surface::Dm).expect("a code that nobody uses");
        let webhook =
            Webhook::command(&env.slack, app, "C1", "U1", "/lobu", &format!("link {code}"));
        env.send(app, &webhook).await.expect("an answer");
        env.slack
            .wait_for_receipt("the reply to the link code", |r| {
                webhook.response_url.ends_with(&r.to)
            })
            .await;
    }
    send_and_wait(&env, &app, "from the one who leaves").await;
    send_and_wait(&env, &other, "from the one who stays").await;
    let (id, stays) = (app.connection.to_string(), other.connection.to_string());
    let listed = env.tidegate(&["connections", "list"]).expect("a list");
    assert!(listed.contains(&id) && listed.contains(&stays), "{listed}");
    let shown = env.tidegate(&["connections", "show", &id, "--json"]).expect("shown");
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((&shown["status"], &shown["bindings"]), (&"active".into(), &1.into()));
    assert!(!shown.to_string().contains(&app.token), "{shown}");
    assert!(tables_naming(&env, &id).await.len() > 3, "there is something to delete");

    let ran = env.try_tidegate(&["connections", "delete", &id]).expect("it runs");
    let error = String::from_utf8(ran.stderr).expect("text");
    assert!(!ran.status.success() && error.contains("--yes"), "{error}");
    let printed = env.tidegate(&["connections", "delete", &id, "--yes"]).expect("deleted");
    assert!(
        printed.contains("bindings: 1\nlink codes: 2\n")
            && printed.contains("webhooks in the stream: 2\n"),
        "{printed}"
    );
    let gone = try_eventually("no row names the connection", TIMEOUT, async || {
        tables_naming(&env, &id).await.is_empty().then_some(())
    });
    assert!(gone.await.is_ok(), "{:?} name it", tables_naming(&env, &id).await);
    let directory =
        Directory::open(&config::jetstream(env.client().clone())).await.expect("the directory");
    let entry = directory.entry(app.connection).await.expect("a look");
    assert!(matches!(entry, Some(DirectoryEntry::Deleted { .. })), "{entry:?}");
    for ingest in &env.ingests {
        let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello?");
        let answer = env.slack.send(&ingest.url(&app), &app.secret, &webhook).await;
        assert_eq!(answer.expect("an answer").status, 404);
    }
    assert_eq!(env.stored().await.expect("a count"), 2, "the other connection's webhooks stay");
    send_and_wait(&env, &other, "still here").await;
    assert!(!env.try_tidegate(&["connections", "show", &id]).expect("it runs").status.success());
}

/// Tables in which others must not change rows of a tenant. `connections` is compared for all
/// tenants.
const TABLES_OF_TENANT: [&str; 13] = [
    "agents",
    "channel_bindings",
    "channel_binding_history",
    "link_codes",
    "organization_members",
    "user_identities",
    "deliveries",
    "dead_letters",
    "pauses",
    "conversation_sessions",
    "welcomed_users",
    "deleted_messages",
    "known_channels",
];

/// Connections of a victim and of an attacker, who makes each attempt.
struct Tenants {
    env: TestEnv,
    /// Ordinary connection whose channel `C1` is bound.
    victim: App,
    /// Preview connection of the victim's organization, on the shared app.
    preview: App,
    attacker: App,
    /// The attacker's installation of the victim's app, with the same signing secret.
    twin: App,
    /// Agent of the victim's organization. The attacker's is the sample agent.
    agent: Agent,
}

impl Tenants {
    async fn start() -> Self {
        let env = TestEnv::start(SMALL).await.expect("a test environment");
        let agent = Agent::start().await.expect("an agent");
        let answered = |new: &mut NewConnection| new.agent = Some(agent_id());
        let victim = env.connect_as(answered).await.expect("a connection");
        let of_victim = new_agent(&victim.org, agent_id(), agent.url()).expect("an agent");
        env.store.put_agent(&of_victim).await.expect("Postgres");
        let attacker = env.connect_as(answered).await.expect("a connection");
        let twin = env.connect_as(|new| {
            (new.app, new.org) = (victim.app.parse().expect("an id"), attacker.org.clone());
            new.signing_secret = Secret::new(victim.secret.clone()).expect("not empty");
        });
        let twin = App { org: attacker.org.clone(), ..twin.await.expect("a connection") };
        let preview = env.connect_as(|new| {
            (new.app, new.org) = (SHARED_APP.parse().expect("an id"), victim.org.clone());
            (new.team, new.preview_mode, new.settings.broadcasts) = (None, true, true);
        });
        let preview = App { org: victim.org.clone(), ..preview.await.expect("a connection") };
        let code = env.create_link_code(&victim, &[Surface::Channel]).await.expect("a code");
        let tenants = Self { env, victim, preview, attacker, twin, agent };
        let reply = tenants.command(&tenants.victim, "UOWNER", &format!("link {code}")).await;
        assert!(reply.starts_with("Linked."), "{reply}");
        eventually("the binding is announced", TIMEOUT, async || {
            let known = "select 1 from known_channels where connection_id = $1
                            and not exists (select from outbox)";
            let known = sqlx::query(known).bind(tenants.victim.connection.to_string());
            known.fetch_optional(&tenants.env.pool).await.ok()?
        })
        .await;
        tenants
    }

    /// Returns the state of the victim that others must not change: rows, messages, and requests to
    /// its agent.
    async fn state(&self) -> Vec<String> {
        let Self { env, victim, preview, .. } = self;
        let owned = [victim.connection.to_string(), victim.org.to_string()];
        let mut state = Vec::new();
        for table in TABLES_OF_TENANT {
            let sql = format!(
                "select '{table} ' || t::text from {table} t
                  where t::text like '%' || $1 || '%' or t::text like '%' || $2 || ',%' order by 1"
            );
            let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(&owned[0]).bind(&owned[1]);
            let rows: Vec<String> = rows.fetch_all(&env.pool).await.expect(table);
            state.extend(rows);
        }
        let rows = sqlx::query_scalar(
            "select 'connection ' || c::text from connections c where id = any ($1) order by 1",
        );
        let ids = [victim, preview, &self.twin].map(|app| app.connection.to_string());
        let rows: Vec<String> =
            rows.bind(&ids[..]).fetch_all(&env.pool).await.expect("connections");
        state.extend(rows);
        let posted = env.slack.calls_of("chat.postMessage").into_iter();
        let posted = posted.filter(|call| call.token.as_deref() == Some(&victim.token)).count();
        let asked = self.agent.requests().len();
        state.push(format!("{posted} messages with its token, {asked} requests to its agent"));
        state
    }

    /// Sends a webhook. Returns the status of the response, and the outcome if it was stored.
    async fn send(&self, url: &str, secret: &str, webhook: Webhook) -> String {
        let before = self.env.stored().await.expect("a count");
        let answer = self.env.slack.send(url, secret, &webhook).await.expect("an answer");
        self.outcome(before, &answer, &webhook).await
    }

    async fn outcome(&self, before: u64, answer: &Answer, webhook: &Webhook) -> String {
        if self.env.stored().await.expect("a count") == before {
            return format!("{}, not stored", answer.status);
        }
        let outcome = self.env.try_wait_for_outcome(&webhook.dedup_key).await;
        let outcome = outcome.map_or("stored for another".to_owned(), |found| found.outcome);
        format!("{}, {outcome}", answer.status)
    }

    /// Sends a webhook to the attacker's own URL, signed with the attacker's own secret.
    async fn send_own(&self, webhook: Webhook) -> String {
        self.send(&self.env.ingests[0].url(&self.attacker), &self.attacker.secret, webhook).await
    }

    /// Sends a webhook to the victim's URL.
    async fn send_to_victim(&self, secret: &str, webhook: Webhook) -> String {
        self.send(&self.env.ingests[0].url(&self.victim), secret, webhook).await
    }

    async fn send_shared(&self, secret: &str, webhook: Webhook) -> String {
        self.send(&self.env.ingests[0].path("/slack/events"), secret, webhook).await
    }

    fn message(&self, app: &App) -> Webhook {
        Webhook::message(&self.env.slack, app, "C1", "U1", "hello")
    }

    fn event(&self, app: &App, inner: Value) -> Webhook {
        Webhook::event(&self.env.slack, app, "an event", inner)
    }

    fn slash(&self, app: &App, user: &str, text: &str) -> Webhook {
        Webhook::command(&self.env.slack, app, "C1", user, "/lobu", text)
    }

    /// Sends a command in channel `C1` of a connection. Returns the reply.
    async fn command(&self, app: &App, user: &str, text: &str) -> String {
        let webhook = self.slash(app, user, text);
        let answer = self.env.send(app, &webhook).await.expect("an answer");
        if answer.status != 200 {
            return format!("{}, not stored", answer.status);
        }
        let reply = self.env.slack.wait_for_receipt("the reply to the command", |r| {
            webhook.response_url.ends_with(&r.to)
        });
        reply.await.text().to_owned()
    }

    /// Creates a link code of an organization's agent.
    async fn code(&self, org: &OrgId, agent: AgentId, on: Option<ConnectionId>) -> String {
        let new = NewLinkCode {
            org: org.clone(),
            agent,
            platform: Platform::Slack,
            surfaces: vec![Surface::Channel],
            connection: on,
            ttl: Duration::from_secs(900),
        };
        self.env
            .store
            .create_link_code(&tests::provision::actor(), &new)
            .await
            .expect("a code")
            .reveal()
    }

    /// Declares an app (mode `forward`) of the attacker.
    async fn put_app(&self, id: &str, url: String, signs_as_slack: bool) -> AgentId {
        let id: AgentId = id.parse().expect("an id");
        let app = new_agent(&self.attacker.org, id.clone(), url).expect("an agent");
        let app = NewAgent { mode: AgentMode::Forward, signs_as_slack, ..app };
        self.env.store.put_agent(&app).await.expect("Postgres");
        id
    }

    /// Runs a command line. Returns its exit code and errors.
    fn run(&self, args: &[&str]) -> String {
        let ran = self.env.try_tidegate(args).expect("it runs");
        let error = String::from_utf8_lossy(&ran.stderr).into_owned();
        format!("exit {}: {error}", ran.status.code().unwrap_or_default())
    }

    /// Applies a file in which the attacker's organization declares a connection.
    fn apply(&self, connection: &str) -> String {
        self.env.write("theft.secret", "0123456789abcdef").expect("written");
        let org = &self.attacker.org;
        let text = format!(
            "[[organization]]\nid = \"{org}\"\n[[connection]]\norganization = \"{org}\"\n\
             signing_secret = \"file:theft.secret\"\n{connection}\n"
        );
        let file = self.env.write("theft.toml", &text).expect("written");
        self.run(&["apply", "-f", file.to_str().expect("UTF-8")])
    }

    /// Runs a statement with these ids. Returns the number of affected rows.
    async fn execute(&self, statement: &'static str, ids: &[&str]) -> u64 {
        let query = ids.iter().fold(sqlx::query(statement), |query, id| query.bind(*id));
        query.execute(&self.env.pool).await.expect(statement).rows_affected()
    }

    /// Deletes the unused link codes of the victim. A used one would change the state.
    async fn remove_unused_code(&self) {
        let statement = "delete from link_codes where consumed_at is null and org_id = $1";
        self.execute(statement, &[self.victim.org.as_str()]).await;
    }

    async fn link_own_agent(&self) -> String {
        let code = self.code(&self.attacker.org, agent_id(), None).await;
        self.command(&self.victim, "U2", &format!("link {code}")).await
    }

    async fn create_code_for_victim(&self) -> String {
        let (org, id) = (self.attacker.org.as_str(), self.victim.connection.to_string());
        let of_agent = ["link-codes", "create", "--org", org, "--agent", "sample"];
        self.run(&[&of_agent[..], &["--connection", &id]].concat())
    }

    /// Uses a link code that names the victim's connection, which can only be written directly.
    async fn use_code_for_victim(&self) -> String {
        let Self { attacker, twin, victim, .. } = self;
        let code = self.code(&attacker.org, agent_id(), Some(twin.connection)).await;
        let ids = [victim, twin].map(|app| app.connection.to_string());
        let statement = "update link_codes set connection_id = $1 where connection_id = $2";
        assert_eq!(self.execute(statement, &[&ids[0], &ids[1]]).await, 1);
        let reply = self.command(victim, "U3", &format!("link {code}")).await;
        let statement = "delete from link_codes where connection_id = $1 and consumed_at is null";
        self.execute(statement, &[&ids[0]]).await;
        reply
    }

    async fn use_code_of_victim(&self) -> String {
        let code = self.code(&self.victim.org, agent_id(), Some(self.victim.connection)).await;
        let reply = self.command(&self.attacker, "U4", &format!("link {code}")).await;
        self.remove_unused_code().await;
        reply
    }

    async fn link_own_app(&self) -> String {
        let app = self.put_app("app", self.env.agent.url(), true).await;
        let code = self.code(&self.attacker.org, app, None).await;
        self.command(&self.preview, "U6", &format!("link {code}")).await
    }

    async fn link_as_guest(&self) -> String {
        let Self { env, victim, attacker, .. } = self;
        let code = self.code(&victim.org, agent_id(), Some(victim.connection)).await;
        let ts = format!("{}.000200", unix_now());
        let inner = json!({ "type": "message", "channel": "C1", "user": "UGUEST", "ts": ts,
            "user_team": attacker.team, "channel_type": "channel",
            "text": format!("/lobu link {code}") });
        env.send(victim, &self.event(victim, inner)).await.expect("an answer");
        let notice = try_eventually("the guest gets a notice", TIMEOUT, async || {
            let mut notice = env.slack.receipts();
            notice.retain(|r| r.by == "chat.postEphemeral" && r.body["user"] == "UGUEST");
            notice.pop().map(|notice| notice.text().to_owned())
        });
        let notice = notice.await.unwrap_or_else(|late| late.to_string());
        self.remove_unused_code().await;
        notice
    }

    async fn notify_channel(&self) -> String {
        let Self { env, attacker, preview, .. } = self;
        let code = self.code(&attacker.org, agent_id(), None).await;
        let reply = self.command(preview, "U7", &format!("link {code}")).await;
        if !reply.starts_with("Linked.") {
            return reply;
        }
        let webhook = Webhook::message(&env.slack, preview, "C1", "U7", "hi <!channel>");
        env.send(preview, &webhook).await.expect("an answer");
        let answer =
            env.slack.wait_for_receipt("an answer", |r| r.text().starts_with("I heard: hi"));
        answer.await.text().to_owned()
    }

    async fn send_forwarded(&self) -> String {
        let (env, webhook) = (&self.env, self.message(&self.victim));
        let now = unix_now().to_string();
        let signature = tests::slack::sign(&self.victim.secret, &now, &webhook.body);
        let headers = [
            ("x-slack-signature", signature.as_str()),
            ("x-slack-request-timestamp", &now),
            ("tidegate-delivery", "x"),
        ];
        let before = env.stored().await.expect("a count");
        let url = env.ingests[0].url(&self.victim);
        let answer = env.slack.send_with(&url, &webhook, &headers).await.expect("an answer");
        self.outcome(before, &answer, &webhook).await
    }

    async fn forward_to_tidegate(&self) -> String {
        let Self { env, attacker, .. } = self;
        let id = attacker.connection.to_string();
        let app = self.put_app("loop", env.ingests[0].url(attacker), true).await;
        let statement = "update connections set agent_id = $1 where id = $2";
        self.execute(statement, &[app.as_str(), &id]).await;
        env.send(attacker, &self.message(attacker)).await.expect("an answer");
        let error = try_eventually("the attempt fails", TIMEOUT, async || {
            let error = sqlx::query_scalar(
                "select last_error from delivery_lanes where connection_id = $1 and last_error <> ''",
            );
            error.bind(&id).fetch_optional(&env.pool).await.ok()?
        });
        error.await.unwrap_or_else(|late| late.to_string())
    }

    /// Returns the attempts: name, attempt, and a part of the refusal.
    fn attempts(&self) -> Vec<(&'static str, LocalBoxFuture<'_, String>, &'static str)> {
        let Self { env, victim, preview, attacker, twin, .. } = self;
        let (denied, dropped) = ("401, not stored", "200, not stored");
        let invalid = "This code is invalid or expired.";
        let as_app = App { app: victim.app.clone(), ..attacker.clone() };
        let as_team = App { team: victim.team.clone(), ..attacker.clone() };
        let stranger = App { team: "T0STRANGER".into(), ..preview.clone() };
        let uninstalled = |app: &App| self.event(app, json!({ "type": "app_uninstalled" }));
        let revoked = |app: &App| {
            let tokens = json!({ "bot": [victim.bot_user] });
            self.event(app, json!({ "type": "tokens_revoked", "tokens": tokens }))
        };
        let renamed = json!({ "type": "channel_id_changed", "old_channel_id": "C1",
            "new_channel_id": "C9", "event_ts": "1.1" });
        let deleted = json!({ "type": "message", "subtype": "message_deleted", "channel": "C1",
            "hidden": true, "ts": "2.2", "deleted_ts": "1.1", "channel_type": "channel" });
        let joined = json!({ "type": "team_join", "user": { "id": "UOWNER" } });
        let mut of_nobody = uninstalled(attacker);
        of_nobody.body =
            br#"{"type":"event_callback","event_id":"Ev1","event":{"type":"app_uninstalled"}}"#
                .into();
        of_nobody.dedup_key = DedupKey::event(attacker.connection, "Ev1");
        let click = json!({ "type": "block_actions", "team": { "id": victim.team },
            "user": { "id": "U1" }, "api_app_id": victim.app, "trigger_id": "1.1.x",
            "channel": { "id": "C1" }, "actions": [{ "action_ts": "1.1", "type": "button" }] });
        let click = tests::fixtures::webhook("interaction", &json!({ "_payload": click }));
        let installation = format!("app = \"{}\"\nteam = \"{}\"", victim.app, victim.team);
        let new = "app = \"A0NEW\"\nteam = \"T0NEW\"";
        let with_id = format!("id = \"{}\"\n{new}", victim.connection);
        let with_agent = format!("agent = \"only-theirs\"\n{new}");
        macro_rules! attempts {
            ($($name:literal: $attempt:expr => $refusal:expr;)*) => {
                vec![$(($name, $attempt.boxed_local(), $refusal)),*]
            };
        }
        attempts! {
            // The URL of the victim's connection.
            "the own secret": self.send_to_victim(&attacker.secret, self.message(victim)) => denied;
            "an own webhook": self.send_to_victim(&attacker.secret, self.message(attacker)) => denied;
            "the secret of the shared app":
                self.send_to_victim(&env.shared_secret, self.message(victim)) => denied;
            "a message of another installation of the app":
                self.send_to_victim(&twin.secret, self.message(twin)) => dropped;
            "a command of another installation of the app":
                self.send_to_victim(&twin.secret, self.slash(twin, "U1", "unlink")) => dropped;
            "an uninstall of another installation of the app":
                self.send_to_victim(&twin.secret, uninstalled(twin)) => dropped;
            // The URL of the attacker's connection, with bodies about the victim.
            "the victim's app": self.send_own(self.message(&as_app)) => dropped;
            "the victim's team": self.send_own(self.message(&as_team)) => dropped;
            "the victim's app and team": self.send_own(self.message(victim)) => dropped;
            "a click in the victim's team": self.send_own(click) => dropped;
            "a command in the victim's team": self.send_own(self.slash(victim, "U1", "unlink")) => dropped;
            "an uninstall of the victim's app": self.send_own(uninstalled(victim)) => dropped;
            "revoked tokens of the victim's app": self.send_own(revoked(victim)) => dropped;
            // The same, with ids that equal the victim's.
            "an uninstall without ids": self.send_own(of_nobody) => "200, ignored";
            "the victim's bot as an own one": self.send_own(revoked(attacker)) => "200, ignored";
            "another id for the victim's channel":
                self.send_own(self.event(attacker, renamed)) => "200, installation_event";
            "a deletion in the victim's channel": self.send_own(self.event(attacker, deleted)) => "200, deletion";
            "a greeting of the victim's people":
                self.send_own(self.event(attacker, joined)) => "200, installation_event";
            "unlink the victim's channel":
                async move { self.command(attacker, "U1", "unlink").await } => "This conversation isn't linked.";
            // The shared route.
            "the own secret on the shared route":
                self.send_shared(&attacker.secret, self.message(&stranger)) => denied;
            "the victim's own app on the shared route":
                self.send_shared(&env.shared_secret, self.message(victim)) => dropped;
            "an uninstall of a team that the preview connection serves":
                self.send_shared(&env.shared_secret, uninstalled(&stranger)) => dropped;
            // Links and agents.
            "link an own agent to the victim's channel": self.link_own_agent() => invalid;
            "create a code for the victim's connection": self.create_code_for_victim() => "exit 1: ";
            "use a code for the victim's connection": self.use_code_for_victim() => invalid;
            "use the victim's code": self.use_code_of_victim() => invalid;
            "link the victim's agent by name":
                async move { self.command(attacker, "U5", &format!("link {}/sample", victim.org)).await } => invalid;
            "try the victim's agents":
                async move { self.command(attacker, "U5", "try sample").await } => "preview";
            "link an own app to the preview connection":
                self.link_own_app() => "This code is for an app of another organization";
            "link the victim's channel as a guest": self.link_as_guest() => "Only members of this workspace";
            "notify everybody in a linked channel": self.notify_channel() => "I heard: hi @channel";
            // Loops.
            "a webhook that Tidegate forwarded": self.send_forwarded() => "508, not stored";
            "an app at Tidegate's own URL": self.forward_to_tidegate() => "answered 508";
            // Files of operators.
            "declare the victim's installation":
                async move { self.apply(&installation) } => "belongs to organization";
            "declare the victim's connection": async move { self.apply(&with_id) } => "another installation";
            "declare the victim's agent": async move { self.apply(&with_agent) } => "has no agent only-theirs";
        }
    }
}

/// Each attempt of [`Tenants::attempts`] is refused, and changes and uses nothing of the victim's.
#[tokio::test]
async fn reaches_no_other_tenant() {
    let tenants = Tenants::start().await;
    let theirs = "only-theirs".parse().expect("an id");
    let theirs = new_agent(&tenants.victim.org, theirs, tenants.agent.url()).expect("an agent");
    tenants.env.store.put_agent(&theirs).await.expect("Postgres");
    let mut before = tenants.state().await;
    assert!(before.len() > 6, "{before:#?}");
    let mut reached = Vec::new();
    for (name, attempt, refusal) in tenants.attempts() {
        let (answer, state) = (attempt.await, tenants.state().await);
        if !answer.contains(refusal) {
            reached.push(format!("{name}: expected {refusal:?}, got {answer:?}"));
        }
        let changed = state.iter().filter(|line| !before.contains(line));
        reached.extend(changed.map(|line| format!("{name}: {line}")));
        if state.len() < before.len() {
            reached.push(format!("{name}: rows of the victim are gone"));
        }
        before = state;
    }
    assert!(reached.is_empty(), "{}", reached.join("\n"));
    // A webhook of the victim itself does change the compared state.
    let Tenants { victim, .. } = &tenants;
    let sent = tenants.send_to_victim(&victim.secret, tenants.message(victim)).await;
    assert_eq!(sent, "200, completed");
    assert_ne!(tenants.state().await, before);
}
