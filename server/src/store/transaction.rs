//! Units of work: named transactions that carry the time and the origin of their changes. They are retried after a
//! conflict in Postgres, and metered.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Instant,
};

use futures_util::future::BoxFuture;
use sqlx::{PgConnection, Postgres};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::{
    changes::Origin,
    clock::{self, Clock},
    telemetry::transactions::{Name, TransactionEnd},
};

/// How often a transaction is tried before a conflict is reported.
const TRIES: usize = 5;

/// Runs a function in one transaction of a store: `tx!(store, Name, origin => function(arguments)).await`.
///
/// The function gets the transaction before these arguments. It may run several times, so the arguments must be `Copy`,
/// and it must have no effects outside the database. (The compiler cannot prove that a closure which borrows the
/// arguments is `Send`. [`Store::tx`] therefore takes them separately, and this macro writes both.)
macro_rules! tx {
    // Each step of the recursion creates an `argument` of its own. Macro hygiene keeps them apart.
    (@bind $call:tt [$($bound:tt)*] $argument:expr, $($rest:expr,)*) => {
        $crate::store::transaction::tx!(@bind $call [$($bound)* (argument = $argument)] $($rest,)*)
    };
    (@bind [$store:expr, $name:ident, $origin:expr, $($function:ident)::+] [$(($argument:ident = $value:expr))*]) => {
        $store.tx(
            $crate::telemetry::transactions::Name::$name,
            $origin,
            &($($value,)*),
            |tx, &($($argument,)*)| Box::pin($($function)::+(tx, $($argument),*)),
        )
    };
    ($store:expr, $name:ident, $origin:expr => $($function:ident)::+ ($($argument:expr),* $(,)?)) => {
        $crate::store::transaction::tx!(@bind [$store, $name, $origin, $($function)::+] [] $($argument,)*)
    };
}
pub(crate) use tx;

/// A running transaction, with the origin of its changes. It is rolled back if it is dropped.
pub struct Transaction {
    inner: sqlx::Transaction<'static, Postgres>,
    clock: Arc<dyn Clock>,
    origin: Origin,
}

impl Transaction {
    /// The present time.
    pub(crate) fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    /// A new id of the present time.
    pub(crate) fn new_id(&self) -> Uuid {
        clock::new_id(self.clock())
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    /// Who causes the changes.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Attributes later changes to another origin, and returns the previous one. The caller is known more precisely
    /// once its key or account has been found.
    pub(crate) fn act_as(&mut self, origin: Origin) -> Origin {
        std::mem::replace(&mut self.origin, origin)
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.inner
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}

impl Store {
    /// Runs `operation` in one transaction and commits it if it succeeds. See [`tx!`].
    ///
    /// After a serialization failure or a deadlock, it rolls back and tries again.
    pub(crate) async fn tx<C, T, E>(
        &self,
        name: Name,
        origin: &Origin,
        context: &C,
        operation: impl for<'c> Fn(&'c mut Transaction, &'c C) -> BoxFuture<'c, Result<T, E>>,
    ) -> Result<T, E>
    where
        E: From<StoreError> + AsStoreError,
    {
        let started = Instant::now();
        let mut tries = 1;
        let result = loop {
            let result = self.attempt(origin, context, &operation).await;
            let collided = result
                .as_ref()
                .is_err_and(|error| error.as_store_error().is_some_and(StoreError::is_collision));
            if !collided || tries == TRIES {
                break result;
            }
            tracing::debug!(transaction = name.as_str(), tries, "collided, trying again");
            self.metrics.transactions.collided(name);
            tries += 1;
        };
        let end = match &result {
            Ok(_) => TransactionEnd::Committed,
            Err(error) if error.as_store_error().is_some() => TransactionEnd::Failed,
            Err(_) => TransactionEnd::Refused,
        };
        self.metrics.transactions.ended(name, end, started.elapsed());
        result
    }

    async fn attempt<C, T, E: From<StoreError>>(
        &self,
        origin: &Origin,
        context: &C,
        operation: &impl for<'c> Fn(&'c mut Transaction, &'c C) -> BoxFuture<'c, Result<T, E>>,
    ) -> Result<T, E> {
        let mut transaction = Transaction {
            inner: self.wait_for(self.pool.begin()).await?,
            clock: Arc::clone(&self.clock),
            origin: origin.clone(),
        };
        let done = operation(&mut transaction, context).await?;
        transaction.inner.commit().await.map_err(StoreError::from)?;
        Ok(done)
    }
}

/// Finds a database error within another error, to recognize conflicts.
pub trait AsStoreError {
    /// The database error, if there is one.
    fn as_store_error(&self) -> Option<&StoreError>;
}

impl AsStoreError for StoreError {
    fn as_store_error(&self) -> Option<&StoreError> {
        Some(self)
    }
}

/// Implements [`AsStoreError`] for an error with a variant `Store`.
macro_rules! has_store_error {
    ($error:ty) => {
        impl $crate::store::AsStoreError for $error {
            fn as_store_error(&self) -> Option<&$crate::store::StoreError> {
                match self {
                    Self::Store(error) => Some(error),
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use has_store_error;

impl StoreError {
    /// Whether the database is unavailable for any statement.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_)) && !self.is_collision()
    }

    /// Whether the transaction may succeed if it is tried again: a serialization failure or a deadlock.
    fn is_collision(&self) -> bool {
        let (Self::Unavailable(sqlx::Error::Database(error)) | Self::Refused(sqlx::Error::Database(error))) = self
        else {
            return false;
        };
        matches!(error.code().as_deref(), Some("40001" | "40P01"))
    }
}
