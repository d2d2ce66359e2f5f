//! The one error of this crate.

use std::fmt;

/// What went wrong, in the words a user sees. Kernels never panic on user data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// An argument breaks its rule: the message says setting, value, rule and remedy.
    Argument(String),
    /// A row of the data breaks its rule.
    Row { row: usize, message: String },
}

pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(message) => f.write_str(message),
            Self::Row { row, message } => write!(f, "row {row}: {message}"),
        }
    }
}

impl std::error::Error for Error {}
