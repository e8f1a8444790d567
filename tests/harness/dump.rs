//! Everything that rests in Postgres and NATS, for searches.

use crate::test_env::TestEnv;
use std::{fs, path::Path};

/// Returns every row of every table as text.
pub async fn dump_postgres(env: &TestEnv) -> String {
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables
          where table_schema = 'public' and table_type = 'BASE TABLE'",
    )
    .fetch_all(&env.pool)
    .await
    .expect("tables");
    let mut dump = String::new();
    for table in tables {
        let sql = format!("select t::text from {table} t");
        let rows: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&env.pool).await.expect("rows");
        for row in rows {
            dump += &format!("{table}: {row}\n");
        }
    }
    dump
}

/// Returns the content of all files below a folder.
pub fn read_all(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        // A file may be removed meanwhile.
        bytes.extend(if path.is_dir() {
            read_all(&path)
        } else {
            fs::read(&path).unwrap_or_default()
        });
    }
    bytes
}

/// Returns every message of every stream, because blocks of the store may be compressed.
pub async fn dump_streams(env: &TestEnv) -> Vec<u8> {
    use futures_util::TryStreamExt;
    let js = async_nats::jetstream::new(env.client().clone());
    let names: Vec<String> = js.stream_names().try_collect().await.expect("names");
    assert!(names.len() >= 3, "{names:?}");
    let mut bytes = Vec::new();
    for name in names {
        let stream = js.get_stream(&name).await.expect("a stream");
        for sequence in 1..=stream.cached_info().state.last_sequence {
            if let Ok(message) = stream.get_raw_message(sequence).await {
                bytes.extend_from_slice(message.subject.as_bytes());
                bytes.extend_from_slice(format!("{:?}", message.headers).as_bytes());
                bytes.extend_from_slice(&message.payload);
            }
        }
    }
    bytes
}

/// Returns whether bytes contain a text.
pub fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}
