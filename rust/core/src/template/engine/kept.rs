//! Texts that live as long as the process, since instructions borrow names from their source.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

/// The text for the life of the process, once for equal ones.
pub fn keep(text: &str) -> &'static str {
    static KEPT: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kept.get(text) {
        return known;
    }
    let text: &'static str = Box::leak(text.into());
    kept.insert(text);
    text
}
