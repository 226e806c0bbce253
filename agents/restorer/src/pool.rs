//! Things that are dear to make and wait for the next thread that needs one: as many as threads ever worked at once.

use std::sync::{Mutex, PoisonError};

use agent::Failure;

/// What waits.
#[derive(Debug)]
pub(crate) struct Pool<T>(Mutex<Vec<T>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Pool<T> {
    /// Lends one to `step`; none waiting, it is made.
    pub fn lend<U>(
        &self,
        make: impl FnOnce() -> Result<T, Failure>,
        step: impl FnOnce(&mut T) -> U,
    ) -> Result<U, Failure> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = lock().pop();
        let mut one = waiting.map_or_else(make, Ok)?;
        let out = step(&mut one);
        lock().push(one);
        Ok(out)
    }
}
