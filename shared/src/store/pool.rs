//! Connection pool with client-side timeouts.
//!
//! The store runs its statements, transactions and subscriptions here. A Postgres whose host dies,
//! or that is replaced behind its address, closes no socket: the kernel would wait for a quarter of
//! an hour. A statement therefore fails one second after Postgres would have cancelled it. A
//! connection whose statement or transaction did not finish is closed instead of reused, because
//! its state is unknown and a query for that state may hang as well. Only the socket of an
//! abandoned listener remains, without an owner.

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

/// Maximum wait for a free or new connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// Server-side limit of a statement: a lease must not depend on a hanging one.
const STATEMENT_TIMEOUT: &str = "5s";
/// Client-side limit of a statement. Exceeds `STATEMENT_TIMEOUT` by the time Postgres needs to
/// report it.
const STATEMENT: Duration = Duration::from_secs(6);
/// Maximum duration of all statements of a transaction.
const TRANSACTION: Duration = Duration::from_secs(10);
/// Server-side limit of an idle transaction: a frozen worker must not hold its locks.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "3s";
/// Idle time after which a connection is pinged before use. So is a connection that was idle when
/// another failed, because the cause may have affected both. A ping before each use would cost a
/// round trip per statement.
const ASKED_AFTER: Duration = Duration::from_secs(1);
/// Interval without notifications after which a listener checks its connection.
const SILENCE: Duration = Duration::from_secs(10);

/// Pool of connections for statements and transactions. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    pool: PgPool,
    failed: Failed,
}

/// Planning mode of statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plans {
    /// Plans for the values of each call, as Postgres decides.
    PerCall,
    /// Plans once per connection. Traffic statements use an index for any values, and planning
    /// takes longer than running them (5 ms and 1 ms). Sequential scans are disabled: a plan from
    /// an empty table would use them until the table is analyzed.
    Once,
}

/// Time of the last failure of a connection.
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
    /// Creates a pool of at most `max` connections without connecting.
    pub fn new(options: PgConnectOptions, most: u32, plans: Plans) -> Self {
        let options = match plans {
            Plans::PerCall => options,
            Plans::Once => options
                .options([("plan_cache_mode", "force_generic_plan"), ("enable_seqscan", "off")]),
        };
        let options = options.options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
            ("jit", "off"),
        ]);
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

    /// Begins a transaction. Dropping it rolls it back.
    pub async fn begin(&self) -> Result<Transaction, Error> {
        let mut session = self.lend().await?;
        in_time(STATEMENT, session.connection.execute("begin")).await?;
        Ok(Transaction(session))
    }

    /// Listens on a channel with a separate connection.
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

/// Connection in use.
struct Session {
    connection: PoolConnection<Postgres>,
    /// Set when the statement or transaction finished, so that the connection is reusable.
    at_its_end: bool,
    failed: Failed,
}

impl Session {
    /// Marks the connection as reusable after a result or an error of Postgres.
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
            // sqlx pings a returned connection without a timeout.
            runtime.spawn(tokio::time::timeout(STATEMENT, self.connection.return_to_pool()));
        }
    }
}

/// Transaction. `&mut *transaction` runs its statements.
pub(super) struct Transaction(Session);

impl Transaction {
    /// Commits.
    pub async fn commit(mut self) -> Result<(), Error> {
        let answer = in_time(STATEMENT, self.execute("commit")).await;
        self.0.answered(answer).map(|_| ())
    }

    /// Rolls back.
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

/// Subscription to notifications of Postgres.
pub(super) struct Listener(PgListener);

impl Listener {
    /// Returns the next notification. `None`: the connection was lost, and notifications may be
    /// missing.
    pub async fn next(&mut self) -> Result<Option<PgNotification>, Error> {
        loop {
            match tokio::time::timeout(SILENCE, self.0.try_recv()).await {
                Ok(heard) => return heard,
                Err(_) => in_time(STATEMENT, self.0.execute("select 1")).await?,
            };
        }
    }
}

/// Runs a transaction within `TRANSACTION`.
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

/// Runs one statement per connection use.
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
