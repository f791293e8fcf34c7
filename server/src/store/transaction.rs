//! Transactions with a name, repeated when Postgres says that they collided.

use std::ops::{Deref, DerefMut};

use futures_util::future::BoxFuture;
use sqlx::{PgConnection, Postgres};

use super::{Store, StoreError};

/// How often a transaction that collided is tried.
const TRIES: usize = 5;

/// A transaction under way. Rolled back when it is dropped.
#[derive(Debug)]
pub struct Transaction {
    inner: sqlx::Transaction<'static, Postgres>,
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
    /// Runs `operation` in one transaction and commits it when it succeeds.
    ///
    /// A serialization failure or a deadlock rolls back and runs it again, so `operation` has no effect but in the
    /// database. What it needs is handed to it as `context`: a closure that borrowed it could not be proved `Send`.
    pub async fn tx<C, T, E>(
        &self,
        name: &'static str,
        context: &C,
        operation: impl for<'c> Fn(&'c mut Transaction, &'c C) -> BoxFuture<'c, Result<T, E>>,
    ) -> Result<T, E>
    where
        E: From<StoreError> + AsStoreError,
    {
        let mut tries = 1;
        loop {
            let error = match self.attempt(context, &operation).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if tries == TRIES || !error.as_store_error().is_some_and(StoreError::is_collision) {
                return Err(error);
            }
            tracing::debug!(transaction = name, tries, "collided, trying again");
            tries += 1;
        }
    }

    async fn attempt<C, T, E: From<StoreError>>(
        &self,
        context: &C,
        operation: &impl for<'c> Fn(&'c mut Transaction, &'c C) -> BoxFuture<'c, Result<T, E>>,
    ) -> Result<T, E> {
        let inner = self.wait_for(self.pool.begin()).await?;
        let mut transaction = Transaction { inner };
        let done = operation(&mut transaction, context).await?;
        transaction.inner.commit().await.map_err(StoreError::from)?;
        Ok(done)
    }
}

/// Finds the database's word in an error, to tell a collision from the rest.
pub trait AsStoreError {
    /// The database's error, if that is what it is.
    fn as_store_error(&self) -> Option<&StoreError>;
}

impl AsStoreError for StoreError {
    fn as_store_error(&self) -> Option<&StoreError> {
        Some(self)
    }
}

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
