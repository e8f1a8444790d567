//! Members of organizations by the control API, in the same rows as those of `tidegate apply`.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tests::{
    control_api::Caller,
    test_env::{Size, TestEnv, agent_id},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// Members are created, listed, changed and deleted, each with an entry of the audit log. They may
/// link agents by name, as declared ones.
#[tokio::test]
async fn saves_member_by_api() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_control().await.expect("a control API");
    let app = env.declare().expect("applied");
    let owner = Caller::create(&env, "owner", Some(app.org.as_str()));
    let members = format!("/v1/organizations/{}/members", app.org);
    let path = format!("{members}/steve");
    let slack =
        json!({ "slack": [{ "team": "T1", "user": "U1" }, { "team": "T2", "user": "U2" }] });
    let (status, member) = owner.send(Method::PUT, &path, &slack).await;
    assert_eq!((status, &member["slack"]), (StatusCode::OK, &json!(["T1/U1", "T2/U2"])));
    let linkable = async |team: &str, user: &str| {
        let (team, user) = (team.parse().expect("an id"), user.parse().expect("an id"));
        let platform = shared::domain::Platform::Slack;
        let agents = env.store.linkable_agents(platform, &team, &user, &agent_id()).await;
        agents.expect("Postgres").len()
    };
    assert_eq!(linkable("T2", "U2").await, 1);
    owner.send(Method::PUT, &path, &slack).await;
    let less = json!({ "slack": [{ "team": "T1", "user": "U1" }] });
    let (status, member) = owner.send(Method::PUT, &path, &less).await;
    assert_eq!((status, &member["slack"]), (StatusCode::OK, &json!(["T1/U1"])));
    assert_eq!(linkable("T2", "U2").await, 0);
    owner.send(Method::PUT, &format!("{members}/anna"), &json!({ "slack": [] })).await;
    let (_, first) = owner.get(&format!("{members}?limit=1")).await;
    assert_eq!(first["items"][0]["id"], "anna", "{first}");
    let next = first["next"].as_str().expect("another page");
    let (_, second) = owner.get(&format!("{members}?limit=1&cursor={next}")).await;
    assert_eq!((&second["items"][0]["id"], &second["next"]), (&json!("steve"), &Value::Null));

    let (status, _) = owner.send(Method::DELETE, &path, &json!({})).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(linkable("T1", "U1").await, 0);
    let (status, _) = owner.send(Method::DELETE, &path, &json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let log = env.tidegate(&["audit-log", "--json", "--kind", "member"]).expect("printed");
    let actions: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let actions: Vec<&str> = actions.iter().rev().filter_map(|e| e["action"].as_str()).collect();
    let all = ["member.create", "member.change", "member.create", "member.delete"];
    assert_eq!(actions, all, "a repeated write changes nothing");
}

/// A user is the same in all organizations, so that an organization's key can take no other user's
/// identity, and give no other organization's member a new one.
#[tokio::test]
async fn keeps_members_of_others() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_control().await.expect("a control API");
    let (one, two) = (env.declare().expect("applied"), env.declare().expect("applied"));
    let put = async |app: &tests::test_env::App, user: &str, slack: &Value| {
        let owner = Caller::create(&env, "owner", Some(app.org.as_str()));
        let path = format!("/v1/organizations/{}/members/{user}", app.org);
        owner.send(Method::PUT, &path, &json!({ "slack": slack })).await.0
    };
    let steve = json!([{ "team": "T1", "user": "U1" }]);
    let attacker = json!([{ "team": "T1", "user": "U6" }]);
    assert_eq!(put(&one, "steve", &steve).await, StatusCode::OK);
    assert_eq!(put(&two, "mallory", &steve).await, StatusCode::CONFLICT, "another's identity");
    assert_eq!(put(&two, "steve", &attacker).await, StatusCode::CONFLICT, "another's member");
    assert_eq!(put(&two, "steve", &json!([])).await, StatusCode::CONFLICT, "another's member");
    assert_eq!(put(&two, "steve", &steve).await, StatusCode::OK, "the same person");
    let rows: Vec<(String, String)> =
        sqlx::query_as("select user_id, platform_user_id from user_identities order by 1, 2")
            .fetch_all(&env.pool)
            .await
            .expect("rows");
    assert_eq!(rows, [("steve".to_owned(), "U1".to_owned())]);
}
