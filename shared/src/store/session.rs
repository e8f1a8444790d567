//! Sessions with Postgres, none of which is waited for without end.
//!
//! In: statements, transactions, and what to listen for. Out: what sqlx makes of them, or an error in time. A Postgres whose host
//! dies, or that another replaces behind its address, says no word of it: the kernel would wait a quarter of an hour. So a
//! statement is given up a second after Postgres would have ended it. A session whose statement or transaction did not come
//! to its end, whoever gave it up, is closed and not lent again: nobody knows what it is at, and to ask it might take as long.
//! What is left waiting is the socket of a listener that was given up, which is nobody's any more.

use super::StoreError;
use futures_util::{
    FutureExt, StreamExt, TryFutureExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use sqlx::{
    Describe, Either, Error, Execute, Executor, PgConnection, PgPool, Postgres, SqlStr,
    pool::PoolConnection,
    postgres::{
        PgConnectOptions, PgListener, PgNotification, PgPoolOptions, PgQueryResult, PgRow,
        PgStatement, PgTypeInfo,
    },
};
use std::{
    future::Future,
    io::{self, ErrorKind},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// Longest wait for a free session or a new one.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// Postgres ends a statement of ours after this long: a lease must not hang on one;
const STATEMENT_TIMEOUT: &str = "5s";
/// and sooner when it only waits for a lock: that says nothing about what the statement writes.
const LOCK_TIMEOUT: &str = "4s";
/// This long we wait for Postgres to say so.
const STATEMENT: Duration = Duration::from_secs(6);
/// Longest for all statements of a transaction.
const TRANSACTION: Duration = Duration::from_secs(10);
/// Postgres ends our session after this long without a word inside a transaction: a worker frozen there must not
/// hold its locks.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "3s";
/// What a session asks of Postgres's planner. Tables of traffic are often empty when a plan is made, and a plan is kept: it must
/// not be one that reads the whole table once that is full. And no statement is worth being compiled.
const PLANNER: [(&str, &str); 2] = [("enable_seqscan", "off"), ("jit", "off")];
/// A session that was idle for longer is asked before it is lent; so is one that was idle when another failed, for what ended that
/// may have ended it, too. To ask every time would cost a round trip for each statement.
const ASKED_AFTER: Duration = Duration::from_secs(1);
/// Who listens and hears nothing for this long asks whether Postgres is still there.
const SILENCE: Duration = Duration::from_secs(10);

/// Sessions that are lent for a statement or a transaction. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    pool: PgPool,
    failed: Failed,
}

/// When a session failed last.
#[derive(Debug, Clone, Default)]
struct Failed(Arc<Mutex<Option<Instant>>>);

impl Failed {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn within(&self, last: Duration) -> bool {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() <= last)
    }
}

impl Sessions {
    /// At most so many. Touches nothing yet.
    pub fn new(options: PgConnectOptions, most: u32) -> Self {
        let options = options.options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("lock_timeout", LOCK_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
        ]);
        let options = options.options(PLANNER);
        let failed = Failed::default();
        let others = failed.clone();
        let pool = PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(move |session, lent| {
                let ask = lent.idle_for > ASKED_AFTER || others.within(lent.idle_for);
                Box::pin(async move {
                    if ask {
                        sqlx::Connection::ping(session).await?;
                    }
                    Ok(true)
                })
            });
        Self { pool: pool.connect_lazy_with(options), failed }
    }

    /// Begins a transaction. It is rolled back unless it is committed.
    pub async fn begin(&self) -> Result<Transaction, Error> {
        let mut session = self.lend().await?;
        in_time(STATEMENT, session.connection.execute("begin")).await?;
        Ok(Transaction(session))
    }

    /// Listens on a channel, in a session beside all others.
    pub async fn listen(&self, channel: &str) -> Result<Listener, Error> {
        let options = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
        let own = options.connect_lazy_with((*self.pool.connect_options()).clone());
        let mut listener = PgListener::connect_with(&own).await?;
        in_time(STATEMENT, listener.listen(channel)).await?;
        Ok(Listener(listener))
    }

    async fn lend(&self) -> Result<Session, Error> {
        let connection = self.pool.acquire().await?;
        Ok(Session { connection, at_its_end: false, failed: self.failed.clone() })
    }
}

/// A session, lent.
struct Session {
    connection: PoolConnection<Postgres>,
    /// What it was lent for is over, so that it can be lent again.
    at_its_end: bool,
    failed: Failed,
}

impl Session {
    /// An answer, even a refusal, is an end.
    fn answered<T>(mut self, answer: Result<T, Error>) -> Result<T, Error> {
        self.at_its_end = matches!(answer, Ok(_) | Err(Error::Database(_)));
        answer
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.at_its_end {
            self.failed.now();
            self.connection.close_on_drop();
        } else if let Ok(runtime) = Handle::try_current() {
            // sqlx asks a session whether it is well before it takes it back, and left to itself waits for that without end.
            runtime.spawn(tokio::time::timeout(STATEMENT, self.connection.return_to_pool()));
        }
    }
}

/// A transaction; `&mut *transaction` runs its statements.
pub(super) struct Transaction(Session);

impl Transaction {
    /// Puts it into force.
    pub async fn commit(mut self) -> Result<(), Error> {
        let answer = in_time(STATEMENT, self.execute("commit")).await;
        self.0.answered(answer).map(|_| ())
    }

    /// Undoes it.
    pub async fn rollback(mut self) -> Result<(), Error> {
        let answer = in_time(STATEMENT, self.execute("rollback")).await;
        self.0.answered(answer).map(|_| ())
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0.connection
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0.connection
    }
}

/// Hears what Postgres tells of.
pub(super) struct Listener(PgListener);

impl Listener {
    /// The next word; `None` when the link was lost and words may be missing.
    pub async fn next(&mut self) -> Result<Option<PgNotification>, Error> {
        loop {
            match tokio::time::timeout(SILENCE, self.0.try_recv()).await {
                Ok(heard) => return heard,
                Err(_) => in_time(STATEMENT, self.0.execute("select 1")).await?,
            };
        }
    }
}

/// All of a transaction, or an error in time.
pub(super) async fn transaction_in_time<T>(
    transaction: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(TRANSACTION, transaction)
        .await
        .unwrap_or_else(|_| Err(StoreError::Postgres(no_answer(TRANSACTION))))
}

async fn in_time<T>(
    limit: Duration,
    statement: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, statement).await.unwrap_or_else(|_| Err(no_answer(limit)))
}

fn no_answer(within: Duration) -> Error {
    Error::Io(io::Error::new(ErrorKind::TimedOut, format!("no answer within {within:?}")))
}

/// One statement in a session of its own.
impl<'p> Executor<'p> for &'p Sessions {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let all = async move {
            let mut session = self.lend().await?;
            let rows = session.connection.fetch_many(query).try_collect::<Vec<_>>();
            let rows = in_time(STATEMENT, rows).await;
            session.answered(rows).map(|rows| stream::iter(rows.into_iter().map(Ok)))
        };
        all.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let row = async move {
            let mut session = self.lend().await?;
            let row = in_time(STATEMENT, session.connection.fetch_optional(query)).await;
            session.answered(row)
        };
        row.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        let statement = async move {
            let mut session = self.lend().await?;
            let prepared = session.connection.prepare_with(sql, parameters);
            let prepared = in_time(STATEMENT, prepared).await;
            session.answered(prepared)
        };
        statement.boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        let description = async move {
            let mut session = self.lend().await?;
            let described = in_time(STATEMENT, session.connection.describe(sql)).await;
            session.answered(described)
        };
        description.boxed()
    }
}
