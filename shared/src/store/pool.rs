//! Connection pool with client-side timeouts.
//!
//! The store runs its statements, transactions and subscriptions here. A Postgres whose host dies,
//! or that is replaced behind its address, closes no socket: the kernel would wait for a quarter of
//! an hour. A statement therefore fails one second after Postgres would have cancelled it. A
//! connection whose statement or transaction did not finish is closed instead of reused, because
//! its state is unknown and a query for that state may hang as well. Only the socket of an
//! abandoned listener may stay open.

use super::StoreError;
use futures_util::{
    FutureExt, StreamExt, TryFutureExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use sqlx::{
    Describe, Either, Error, Execute, Executor, PgConnection, PgPool, Postgres, SqlStr,
    error::DatabaseError,
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

/// Maximum wait for a free or new connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// Server-side limit of a statement: a lease must not depend on a hanging one.
const STATEMENT_TIMEOUT: &str = "5s";
/// Server-side limit of a wait for a lock. Shorter than `STATEMENT_TIMEOUT`, so that a locked table
/// is not taken for a statement that takes too long.
const LOCK_TIMEOUT: &str = "4s";
/// Client-side limit of a statement. Exceeds `STATEMENT_TIMEOUT` by the time Postgres needs to
/// report it.
const STATEMENT_CLIENT_TIMEOUT: Duration = Duration::from_secs(6);
/// Maximum duration of all statements of a transaction.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Server-side limit of an idle transaction: a frozen worker must not hold its locks.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "3s";
/// Idle time after which a connection is pinged before use. A connection that was idle when another
/// failed is pinged, too, because the cause may have affected both. A ping before each use would
/// cost a round trip per statement.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);
/// Maximum time of a ping. After a timeout, connections that were idle at that time are closed
/// without a ping: each ping would take as long, and a pool has many connections.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval without notifications after which a listener checks its connection.
const LISTEN_PING_INTERVAL: Duration = Duration::from_secs(10);

/// Settings of sessions that plan each statement once. Traffic statements read few rows by index
/// for any values, and planning takes longer than running them (5 ms and 1 ms). A plan lasts until
/// its tables are analyzed, and they may have been small or empty when it was made. Sequential
/// scans are therefore disabled, and the cost of a plan is the number of rows that it reads:
/// otherwise Postgres joins a small table as a whole instead of by key.
const PLAN_ONCE: [(&str, &str); 6] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("seq_page_cost", "0"),
    ("random_page_cost", "0"),
    ("cpu_tuple_cost", "1"),
    ("cpu_index_tuple_cost", "1"),
];

/// Pool of connections for statements and transactions. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pool: PgPool,
    failed: LastFailure,
}

/// Planning mode of statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanMode {
    /// Plans for the values of each call, as Postgres decides.
    PerCall,
    /// Plans once per connection, with the settings [`PLAN_ONCE`].
    Once,
}

/// Time of the last failure of a connection.
#[derive(Debug, Clone, Default)]
struct LastFailure(Arc<Mutex<Option<Instant>>>);

impl LastFailure {
    fn record(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_within(&self, last: Duration) -> bool {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() <= last)
    }
}

impl Pool {
    /// Creates a pool of at most `max` connections without connecting.
    pub fn new(options: PgConnectOptions, max: u32, plans: PlanMode) -> Self {
        let options = match plans {
            PlanMode::PerCall => options,
            PlanMode::Once => options.options(PLAN_ONCE),
        };
        let options = options.options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("lock_timeout", LOCK_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
            ("jit", "off"),
        ]);
        let failed = LastFailure::default();
        let (others, unanswered) = (failed.clone(), LastFailure::default());
        let pool = PgPoolOptions::new()
            .max_connections(max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(move |session, lent| {
                let needs_ping = lent.idle_for > PING_AFTER_IDLE || others.is_within(lent.idle_for);
                let unanswered = unanswered.clone();
                Box::pin(async move {
                    if unanswered.is_within(lent.idle_for) {
                        return Err(timeout_error(PING_TIMEOUT));
                    }
                    if needs_ping {
                        let ping = sqlx::Connection::ping(session);
                        with_timeout(PING_TIMEOUT, ping)
                            .await
                            .inspect_err(|_| unanswered.record())?;
                    }
                    Ok(true)
                })
            });
        Self { pool: pool.connect_lazy_with(options), failed }
    }

    /// Returns the options of connections.
    pub fn connect_options(&self) -> Arc<PgConnectOptions> {
        self.pool.connect_options()
    }

    /// Begins a transaction. Dropping it rolls it back.
    pub async fn begin(&self) -> Result<Transaction, Error> {
        let mut connection = self.acquire().await?;
        with_timeout(STATEMENT_CLIENT_TIMEOUT, connection.inner.execute("begin")).await?;
        Ok(Transaction(connection))
    }

    /// Listens on a channel with a separate connection.
    pub async fn listen(&self, channel: &str) -> Result<Listener, Error> {
        let options = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
        let own = options.connect_lazy_with((*self.connect_options()).clone());
        let mut listener = PgListener::connect_with(&own).await?;
        with_timeout(STATEMENT_CLIENT_TIMEOUT, listener.listen(channel)).await?;
        Ok(Listener(listener))
    }

    async fn acquire(&self) -> Result<PooledConnection, Error> {
        let acquired = self.pool.acquire().await;
        let inner = acquired.map_err(|error| name_server(&self.connect_options(), error))?;
        Ok(PooledConnection { inner, finished: false, failed: self.failed.clone() })
    }
}

/// Adds the address of the server to a failure to connect, and the settings to check.
pub(super) fn name_server(options: &PgConnectOptions, error: Error) -> Error {
    let cause = match error {
        Error::PoolTimedOut => format!("no connection within {ACQUIRE_TIMEOUT:?}"),
        Error::Io(error) => error.to_string(),
        Error::Tls(error) => format!("TLS failed: {error}"),
        other => return other,
    };
    let address = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    Error::Io(io::Error::other(format!(
        "failed to connect to Postgres at {address}: {cause}; \
         check TIDEGATE_POSTGRES_URL and TIDEGATE_POSTGRES_CA_FILE"
    )))
}

/// Connection in use.
struct PooledConnection {
    inner: PoolConnection<Postgres>,
    /// Set when the statement or transaction finished, so that the connection is reusable.
    finished: bool,
    failed: LastFailure,
}

impl PooledConnection {
    /// Marks the connection as reusable after a result or an error of Postgres, unless its prepared
    /// statements no longer fit the schema.
    fn finish<T>(mut self, answer: Result<T, Error>) -> Result<T, Error> {
        self.finished = match &answer {
            Ok(_) => true,
            Err(Error::Database(error)) => !has_outdated_plan(&**error),
            Err(_) => false,
        };
        answer
    }
}

/// Returns whether a column's type changed since the statement was prepared: Postgres rejects the
/// statement for the rest of the session.
fn has_outdated_plan(error: &dyn DatabaseError) -> bool {
    error.code().as_deref() == Some("0A000") && error.message().contains("cached plan")
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if !self.finished {
            self.failed.record();
            self.inner.close_on_drop();
        } else if let Ok(runtime) = Handle::try_current() {
            // sqlx pings a returned connection without a timeout.
            runtime
                .spawn(tokio::time::timeout(STATEMENT_CLIENT_TIMEOUT, self.inner.return_to_pool()));
        }
    }
}

/// Transaction. `&mut *transaction` runs its statements.
pub(super) struct Transaction(PooledConnection);

impl Transaction {
    /// Commits.
    pub async fn commit(mut self) -> Result<(), Error> {
        let answer = with_timeout(STATEMENT_CLIENT_TIMEOUT, self.execute("commit")).await;
        self.0.finish(answer).map(|_| ())
    }

    /// Rolls back.
    pub async fn rollback(mut self) -> Result<(), Error> {
        let answer = with_timeout(STATEMENT_CLIENT_TIMEOUT, self.execute("rollback")).await;
        self.0.finish(answer).map(|_| ())
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0.inner
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0.inner
    }
}

/// Subscription to notifications of Postgres.
pub(super) struct Listener(PgListener);

impl Listener {
    /// Returns the next notification. `None`: the connection was lost, and notifications may be
    /// missing.
    pub async fn next(&mut self) -> Result<Option<PgNotification>, Error> {
        loop {
            match tokio::time::timeout(LISTEN_PING_INTERVAL, self.0.try_recv()).await {
                Ok(notification) => return notification,
                Err(_) => {
                    with_timeout(STATEMENT_CLIENT_TIMEOUT, self.0.execute("select 1")).await?
                }
            };
        }
    }
}

/// Runs a transaction within `TRANSACTION_TIMEOUT`.
pub(super) async fn with_transaction_timeout<T>(
    transaction: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(TRANSACTION_TIMEOUT, transaction)
        .await
        .unwrap_or_else(|_| Err(StoreError::Postgres(timeout_error(TRANSACTION_TIMEOUT))))
}

async fn with_timeout<T>(
    limit: Duration,
    statement: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, statement).await.unwrap_or_else(|_| Err(timeout_error(limit)))
}

fn timeout_error(limit: Duration) -> Error {
    Error::Io(io::Error::new(ErrorKind::TimedOut, format!("no response within {limit:?}")))
}

/// Runs one statement per connection use.
impl<'p> Executor<'p> for &'p Pool {
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
            let mut connection = self.acquire().await?;
            let rows = connection.inner.fetch_many(query).try_collect::<Vec<_>>();
            let rows = with_timeout(STATEMENT_CLIENT_TIMEOUT, rows).await;
            connection.finish(rows).map(|rows| stream::iter(rows.into_iter().map(Ok)))
        };
        all.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let row = async move {
            let mut connection = self.acquire().await?;
            let row =
                with_timeout(STATEMENT_CLIENT_TIMEOUT, connection.inner.fetch_optional(query))
                    .await;
            connection.finish(row)
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
            let mut connection = self.acquire().await?;
            let prepared = connection.inner.prepare_with(sql, parameters);
            let prepared = with_timeout(STATEMENT_CLIENT_TIMEOUT, prepared).await;
            connection.finish(prepared)
        };
        statement.boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        let description = async move {
            let mut connection = self.acquire().await?;
            let described =
                with_timeout(STATEMENT_CLIENT_TIMEOUT, connection.inner.describe(sql)).await;
            connection.finish(described)
        };
        description.boxed()
    }
}
