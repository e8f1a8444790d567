//! Tests of the cache: secrets that open, and tombstones that are forgotten.

use super::*;
use tokio::time::advance;

const OWN: &str = "00000000000000000000000000000001";
const OF_APP: &str = "00000000000000000000000000000002";

fn ring(id: &str) -> KeyRing {
    KeyRing::generate(id).expect("randomness").parse().expect("a ring")
}

fn sealed(ring: &KeyRing, owner: &str, column: &'static str) -> SealedSigningSecret {
    let context = SealContext { owner, column };
    SealedSigningSecret { sealed: ring.seal(context, b"secret").expect("sealed") }
}

fn apply_connection(cache: &Cache, id: &str, secrets: Vec<SealedSigningSecret>) {
    let entry = DirectoryEntry::Known(ConnectionRecord {
        version: 1,
        status: ConnectionStatus::Active,
        app: "A1".parse().expect("an id"),
        enterprise: None,
        team: "T1".parse().ok(),
        preview_mode: false,
        signing_secrets: secrets,
    });
    cache.apply(id, &serde_json::to_vec(&entry).expect("JSON"));
}

fn apply_app(cache: &Cache, ring: &KeyRing) {
    let secrets = vec![sealed(ring, "A1", APP_SIGNING_SECRET_COLUMN)];
    let entry = AppEntry::Known { version: 1, signing_secrets: secrets };
    cache.apply("app.A1", &serde_json::to_vec(&entry).expect("JSON"));
}

/// A connection that uses the secrets of its app has none that could fail to open.
#[test]
fn counts_secrets_of_connections_and_apps() {
    let (right, wrong) = (ring("k1"), ring("k1"));
    let cache = Cache::new(right.clone());
    assert!(!cache.unseals_no_secret(), "no secrets");
    apply_connection(&cache, OF_APP, Vec::new());
    assert!(!cache.unseals_no_secret(), "the connection has no secret of its own");
    apply_connection(&cache, OWN, vec![sealed(&wrong, OWN, SIGNING_SECRET_COLUMN)]);
    assert!(cache.unseals_no_secret(), "the only secret does not open");
    apply_app(&cache, &right);
    assert!(!cache.unseals_no_secret(), "the secret of the app opens");

    let cache = Cache::new(right);
    apply_app(&cache, &wrong);
    assert!(cache.unseals_no_secret(), "the secret of the app does not open");
}

const ID: &str = "0123456789abcdef0123456789abcdef";

fn known(version: i64) -> String {
    let record = ConnectionRecord {
        version,
        status: ConnectionStatus::Active,
        app: "A1".parse().expect("an id"),
        enterprise: None,
        team: Some("T1".parse().expect("an id")),
        preview_mode: false,
        signing_secrets: Vec::new(),
    };
    serde_json::to_string(&DirectoryEntry::Known(record)).expect("JSON")
}

fn deleted(version: i64) -> String {
    serde_json::to_string(&DirectoryEntry::Deleted { version }).expect("JSON")
}

/// Returns whether the cache has a connection, `None` if it has neither it nor its tombstone.
fn connection(cache: &Cache) -> Option<bool> {
    cache.connection(ID.parse().expect("an id")).map(|cached| cached.is_some())
}

/// A tombstone of each kind refuses older versions for an hour, and is forgotten after it.
#[tokio::test(start_paused = true)]
async fn forgets_tombstones_after_an_hour() {
    let cache = Cache::new(KeyRing::default());
    let app = "A1".parse().expect("an id");
    cache.apply(ID, known(1).as_bytes());
    cache.apply(ID, deleted(2).as_bytes());
    advance(TOMBSTONE_CACHE_PERIOD / 2).await;
    cache.apply("team.A1.T1", br#"{"version":2,"connection":null}"#);
    cache.apply("app.A1", br#"{"is":"deleted","version":3}"#);
    advance(TOMBSTONE_CACHE_PERIOD / 2 - Duration::from_secs(1)).await;
    cache.forget_tombstones();
    cache.apply(ID, known(1).as_bytes());
    assert_eq!(connection(&cache), Some(false), "the older version is refused");
    advance(Duration::from_secs(1)).await;
    cache.forget_tombstones();
    assert_eq!(connection(&cache), None);
    assert_eq!(cache.team_connection("team.A1.T1"), Some(None), "applied half an hour later");
    assert!(matches!(cache.app(&app), Some(None)));
    advance(TOMBSTONE_CACHE_PERIOD / 2).await;
    cache.forget_tombstones();
    assert_eq!(cache.team_connection("team.A1.T1"), None);
    assert!(cache.app(&app).is_none());
    assert!(cache.read().tombstones.is_empty());
}

/// A newer version of a key stays when its older tombstone is due.
#[tokio::test(start_paused = true)]
async fn keeps_newer_versions_than_tombstones() {
    let cache = Cache::new(KeyRing::default());
    cache.apply(ID, deleted(2).as_bytes());
    cache.apply(ID, known(3).as_bytes());
    cache.apply("team.A1.T1", br#"{"version":2,"connection":null}"#);
    let routed = format!(r#"{{"version":3,"connection":"{ID}"}}"#);
    cache.apply("team.A1.T1", routed.as_bytes());
    advance(TOMBSTONE_CACHE_PERIOD).await;
    cache.forget_tombstones();
    assert_eq!(connection(&cache), Some(true));
    assert!(matches!(cache.team_connection("team.A1.T1"), Some(Some(_))));
    assert!(cache.read().tombstones.is_empty());
}

/// Many due tombstones are forgotten in steps, and repeated ones are queued once.
#[tokio::test(start_paused = true)]
async fn forgets_tombstones_in_steps() {
    let cache = Cache::new(KeyRing::default());
    for n in 0..FORGOTTEN_MAX + 1 {
        for _ in 0..2 {
            cache.apply(&format!("{n:032x}"), deleted(1).as_bytes());
        }
    }
    advance(TOMBSTONE_CACHE_PERIOD).await;
    cache.forget_tombstones();
    assert_eq!(cache.read().connections.len(), 1);
    cache.forget_tombstones();
    assert!(cache.read().connections.is_empty() && cache.read().tombstones.is_empty());
}
