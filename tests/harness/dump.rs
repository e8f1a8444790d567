//! Dumps of everything stored in Postgres and NATS, which tests search for secrets and texts.

use crate::{fetch, s2, test_env::TestEnv};
use std::{fs, path::Path, process::Command};

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

/// Returns the output of `pg_dump`: schema, rows and sequences. `None` if this Postgres has no
/// `pg_dump`.
pub async fn pg_dump(env: &TestEnv) -> Option<String> {
    let program = fetch::postgres_bin(&env.run).await.expect("a Postgres").join("pg_dump");
    if !program.exists() {
        return None;
    }
    let database: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(&env.pool)
        .await
        .expect("a database");
    let ran = Command::new(program).arg(env.postgres.url(&database)).output().expect("it runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    Some(String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// Files of the stream of webhooks.
#[derive(Debug, Default)]
pub struct StreamFiles {
    /// The bytes of all files. Each compressed block is preceded by its decompressed content.
    pub bytes: Vec<u8>,
    /// Number of blocks.
    pub blocks: usize,
    /// Number of compressed blocks.
    pub compressed: usize,
}

/// Returns the files of the stream of webhooks.
pub fn stream_files(env: &TestEnv) -> StreamFiles {
    let mut found = StreamFiles::default();
    collect_stream_files(env.nats.store_dir(), false, &mut found);
    assert!(!found.bytes.is_empty(), "the stream has files");
    found
}

fn collect_stream_files(folder: &Path, is_of_stream: bool, found: &mut StreamFiles) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            let is_of_stream = is_of_stream || path.ends_with("SLACK_IN");
            collect_stream_files(&path, is_of_stream, found);
        } else if is_of_stream {
            // A file may be removed meanwhile.
            let bytes = fs::read(&path).unwrap_or_default();
            found.blocks += usize::from(path.extension().is_some_and(|it| it == "blk"));
            if s2::is_compressed(&bytes) {
                found.compressed += 1;
                found.bytes.extend(s2::decompress(&bytes).expect("a block"));
            }
            found.bytes.extend(bytes);
        }
    }
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

/// Returns every message of every stream.
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
