//! A turn of a chat.

use std::borrow::Cow;

/// One turn of a chat; texts are borrowed where they need no change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    pub role: &'a str,
    pub content: Cow<'a, str>,
    /// A JSON object of the message's further keys (`tool_calls`, `name`, …), if any.
    pub extra: Option<Cow<'a, str>>,
}

impl<'a> Message<'a> {
    pub fn new(role: &'a str, content: impl Into<Cow<'a, str>>) -> Self {
        Self {
            role,
            content: content.into(),
            extra: None,
        }
    }

    pub fn is_blank(&self) -> bool {
        self.content.trim_start().is_empty()
    }

    pub fn calls_tools(&self) -> bool {
        let calls = |extra: &Cow<str>| extra.contains("\"tool_calls\"");
        self.extra.as_ref().is_some_and(calls)
    }
}
