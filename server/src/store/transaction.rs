//! Units of work: named transactions that carry the time and the origin of their changes, repeated when Postgres says that
//! they collided, and metered.

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

/// How often a transaction that collided is tried.
const TRIES: usize = 5;

/// Runs a function in one transaction of a store: `tx!(store, Name, origin => function(arguments)).await`.
///
/// The function takes the transaction before these arguments. It may run several times, so the arguments are `Copy`, and it
/// has no effect but in the database. (A closure that borrowed the arguments could not be proved `Send`; therefore
/// [`Store::tx`] takes them apart from the function, and this macro spells both.)
macro_rules! tx {
    // Each step of the recursion makes an `argument` of its own, which macro hygiene keeps apart from the others.
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

/// A transaction under way, with the origin of what it changes. Rolled back when it is dropped.
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

    /// Attributes what follows to another origin, and returns the one before. A caller is known better once its key or account
    /// has been found.
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
    /// Runs `operation` in one transaction and commits it when it succeeds: see [`tx!`].
    ///
    /// A serialization failure or a deadlock rolls back and runs it again.
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

/// Finds the database's error in an error, to tell a collision from the rest.
pub trait AsStoreError {
    /// The database's error, if that is what it is.
    fn as_store_error(&self) -> Option<&StoreError>;
}

impl AsStoreError for StoreError {
    fn as_store_error(&self) -> Option<&StoreError> {
        Some(self)
    }
}

/// Implements [`AsStoreError`] for an error whose member `Store` is the database's.
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
    /// Whether the database cannot be reached or cannot work, whatever it is asked.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_)) && !self.is_collision()
    }

    /// Whether the same transaction may succeed when it is run again: serialization failure or deadlock.
    fn is_collision(&self) -> bool {
        let (Self::Unavailable(sqlx::Error::Database(error)) | Self::Refused(sqlx::Error::Database(error))) = self
        else {
            return false;
        };
        matches!(error.code().as_deref(), Some("40001" | "40P01"))
    }
}
