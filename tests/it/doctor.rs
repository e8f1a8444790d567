//! What is wrong with a deployment is found and told with its remedy, by `tidegate doctor`.

use serde_json::Value;
use tests::world::{SMALL, Size, World};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: true };

fn doctor(world: &World, args: &[&str]) -> (bool, Vec<Value>) {
    let ran = world.try_tidegate(&[&["doctor", "--json"], args].concat()).expect("it runs");
    let out = String::from_utf8(ran.stdout).expect("text");
    let found = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    (ran.status.success(), found)
}

fn bad(found: &[Value]) -> Vec<String> {
    let bad = found.iter().filter(|f| f["level"] == "problem");
    bad.map(|f| {
        assert_ne!(f["remedy"], "", "{f}");
        format!(
            "{}: {}",
            f["component"].as_str().expect("text"),
            f["summary"].as_str().expect("text")
        )
    })
    .collect()
}

/// A Slack app whose slash command points at the deployment before this one: what the original's users lived through.
#[tokio::test]
async fn a_healthy_deployment_has_no_problem_and_a_slash_command_with_a_wrong_address_is_one() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.declare().expect("applied");
    let (ok, found) = doctor(&world, &[]);
    assert!(ok && bad(&found).is_empty(), "{found:?}");
    for component in ["postgres", "nats", "directory"] {
        assert!(
            found.iter().any(|f| f["component"] == component && f["level"] == "good"),
            "{component}: {found:?}"
        );
    }
    let id = app.connection.to_string();
    let reached = ["--base-url", "https://gw.example.com", "--connection", &id];
    let manifest = world.tidegate(&[&["manifest"], &reached[..]].concat()).expect("a manifest");
    let file = world.write("app.json", &manifest).expect("written");
    let look = [&["--manifest", file.to_str().expect("UTF-8")], &reached[..]].concat();
    let (ok, found) = doctor(&world, &look);
    assert!(ok, "our own manifest is good: {found:?}");
    let right = format!("\"url\": \"https://gw.example.com/api/v1/webhooks/{id}\"");
    assert!(manifest.contains(&right), "{manifest}");
    world
        .write(
            "app.json",
            &manifest.replace(&right, "\"url\": \"https://old.example.com/slack/events\""),
        )
        .expect("written");
    let (ok, found) = doctor(&world, &look);
    let bad = bad(&found);
    assert!(!ok && bad.len() == 1, "{bad:?}");
    assert!(
        bad[0]
            .starts_with("app: slash command /lobu: sent to https://old.example.com/slack/events"),
        "{bad:?}"
    );
}

#[tokio::test]
async fn an_old_directory_a_missing_schema_and_servers_that_are_away_are_each_found() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let app = world.declare().expect("applied");
    sqlx::query("update connections set preview_mode = true")
        .execute(&world.pool)
        .await
        .expect("changed");
    let (ok, found) = doctor(&world, &[]);
    let old = bad(&found);
    assert!(!ok && old.len() == 1 && old[0].contains(&app.connection.to_string()), "{old:?}");
    assert!(old[0].starts_with("directory: entries older than Postgres: 1 ("), "{old:?}");

    sqlx::query("update _sqlx_migrations set success = false")
        .execute(&world.pool)
        .await
        .expect("changed");
    let (_, found) = doctor(&world, &[]);
    assert!(bad(&found)[0].starts_with("postgres: schema is missing"), "{found:?}");
    world.postgres.kill();
    let (ok, found) = doctor(&world, &[]);
    assert!(!ok && bad(&found)[0].starts_with("postgres: failed to connect: "), "{found:?}");
    world.nats.kill();
    let (ok, found) = doctor(&world, &[]);
    assert!(
        !ok && bad(&found).iter().any(|b| b.starts_with("nats: failed to connect: ")),
        "{found:?}"
    );
}
