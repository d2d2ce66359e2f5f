//! A turn of a chat.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// The further keys of a message that chat templates read. All others are notes (an id, a time, a source).
pub const READ_KEYS: [&str; 9] = [
    "tool_calls",
    "tool_call_id",
    "function_call",
    "name",
    "reasoning_content",
    "thinking",
    "reasoning",
    "tools",
    "documents",
];

/// The key of a turn that goes on, as Mistral calls it.
const OPEN: &str = "prefix";

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
        let calls = self.further_keys().remove("tool_calls");
        calls.is_some_and(|calls| match calls {
            Value::Array(calls) => !calls.is_empty(),
            other => !other.is_null(),
        })
    }

    /// Whether the assistant's turn goes on in what follows.
    pub fn is_open(&self) -> bool {
        self.role == "assistant" && self.further_keys().get(OPEN) == Some(&Value::Bool(true))
    }

    /// Whether the two are one turn: notes, and the ids of tool calls, make no turn another one.
    pub fn is_same_turn(&self, other: &Message) -> bool {
        self.role == other.role
            && self.content == other.content
            && (self.extra == other.extra || self.said_keys() == other.said_keys())
    }

    /// The further keys that templates read, without ids and nulls.
    pub fn said_keys(&self) -> Map<String, Value> {
        let mut keys = self.further_keys();
        keys.retain(|name, value| {
            READ_KEYS.contains(&name.as_str()) && name != "tool_call_id" && !value.is_null()
        });
        if let Some(Value::Array(calls)) = keys.get_mut("tool_calls") {
            let calls = calls.iter_mut().filter_map(Value::as_object_mut);
            calls.for_each(|call| call.retain(|name, _| name != "id"));
        }
        keys
    }

    /// Go on with another message's words and further keys.
    pub fn go_on(&mut self, rest: &Message) {
        self.content.to_mut().push_str(&rest.content);
        if rest.extra.is_some() {
            let mut keys = self.further_keys();
            keys.extend(rest.further_keys());
            self.set_keys(keys);
        }
    }

    /// Say whether the turn goes on in what follows.
    pub fn set_open(&mut self, is_open: bool) {
        let mut keys = self.further_keys();
        if is_open {
            keys.insert(OPEN.into(), Value::Bool(true));
        } else {
            keys.shift_remove(OPEN);
        }
        self.set_keys(keys);
    }

    fn set_keys(&mut self, keys: Map<String, Value>) {
        self.extra = (!keys.is_empty()).then(|| Cow::Owned(Value::Object(keys).to_string()));
    }

    fn further_keys(&self) -> Map<String, Value> {
        let parsed = self
            .extra
            .as_deref()
            .map(serde_json::from_str::<Map<String, Value>>);
        parsed.and_then(Result::ok).unwrap_or_default()
    }
}

/// Whether the two chats have the same turns.
pub fn is_same_chat(chat: &[Message], other: &[Message]) -> bool {
    chat.len() == other.len() && chat.iter().zip(other).all(|(a, b)| a.is_same_turn(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<'a>(content: &'a str, extra: &'a str) -> Message<'a> {
        Message {
            extra: Some(extra.into()),
            ..Message::new("assistant", content)
        }
    }

    #[test]
    fn notes_and_ids_make_no_other_turn() {
        let plain = Message::new("assistant", "a");
        assert!(plain.is_same_turn(&message("a", r#"{"id": 1, "time": "now"}"#)));
        assert!(!plain.is_same_turn(&message("a", r#"{"name": "Ann"}"#)));
        let call = |id: &str| format!(r#"{{"tool_calls": [{{"id": "{id}", "function": {{}}}}]}}"#);
        assert!(message("", &call("x")).is_same_turn(&message("", &call("y"))));
        let calls = r#"{"tool_calls": [{"id": "x", "function": {"name": "f"}}]}"#;
        assert!(!message("", &call("x")).is_same_turn(&message("", calls)));
    }

    #[test]
    fn only_a_call_calls_tools() {
        assert!(message("", r#"{"tool_calls": [{}]}"#).calls_tools());
        for extra in [
            r#"{"tool_calls": []}"#,
            r#"{"tool_calls": null}"#,
            r#"{"note": {"tool_calls": [1]}}"#,
        ] {
            assert!(!message("", extra).calls_tools(), "{extra}");
        }
    }
}
