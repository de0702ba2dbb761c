//! A value that one op leaves for another.

use crate::runtime::host::executor::Run;

/// Empty, until an op puts something in; and again once another has taken it.
pub struct Cell<V> {
    /// As messages name it.
    what: &'static str,
    value: Option<V>,
}

impl<V> Cell<V> {
    /// Empty.
    pub fn new(what: &'static str) -> Self {
        Self { what, value: None }
    }

    /// Fills it.
    ///
    /// # Errors
    /// If it is full.
    pub fn put(&mut self, value: V) -> Run<()> {
        match self.value.replace(value) {
            None => Ok(()),
            Some(_) => Err(format!("makes {} a second time", self.what)),
        }
    }

    /// Empties it.
    ///
    /// # Errors
    /// If it is empty.
    pub fn take(&mut self) -> Run<V> {
        self.value.take().ok_or_else(|| missing(self.what))
    }

    /// What is in it.
    ///
    /// # Errors
    /// If it is empty.
    pub fn get(&self) -> Run<&V> {
        self.value.as_ref().ok_or_else(|| missing(self.what))
    }

    /// What it is called, if something is in it.
    pub fn left(&self) -> Option<&'static str> {
        self.value.as_ref().map(|_| self.what)
    }
}

fn missing(what: &str) -> String {
    format!("reads {what}, which is not there")
}
