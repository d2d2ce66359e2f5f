//! The template with what one row brings to it, and messages as it takes them.

use std::cell::Cell;

use minijinja::value::Value;

use crate::Error;
use crate::message::Message;
use crate::reject::Reject;
use crate::template::{ChatTemplate, Options};
use crate::tokenize::input::Row;

/// Messages of a chat each of which may be looked at by rendering the chat again, and such renderings of a longer one.
pub const SHORT: usize = 16;
const MOST_RENDERINGS: usize = 64;

/// The template with what one row brings to it.
pub struct Chat<'a> {
    pub template: &'a ChatTemplate,
    pub options: Options,
    pub prompt: Vec<Value>,
    renderings: Cell<usize>, // of a long chat, for a single message's sake
}

/// A chat, with its text where it has been rendered, without a generation prompt.
pub struct Written {
    pub chat: Vec<Value>,
    pub text: Option<String>,
}

impl<'a> Chat<'a> {
    pub fn new(template: &'a ChatTemplate, row: &Row) -> Result<Self, Reject> {
        let refused = |field, value: Option<&str>, error: Error| {
            let (value, rule) = (value.unwrap_or_default(), error.to_string());
            Reject::new(field, value, "broken_json", rule, "mend the field")
        };
        let options = Options::of_tools(row.tools)
            .map_err(|error| refused("tools", row.tools, error))?
            .with_variables(row.template_kwargs)
            .map_err(|error| refused("template_kwargs", row.template_kwargs, error))?;
        let chat = Self {
            template,
            options,
            prompt: values("prompt", &row.prompt)?,
            renderings: Cell::new(0),
        };
        Ok(match chat.with_calls(chat.prompt.clone(), 0) {
            Some(Written { chat: prompt, .. }) => Self { prompt, ..chat },
            None => chat,
        })
    }

    /// The chat with null for the empty contents of messages from `first` on that call tools, if only so the template
    /// writes the calls; the chat itself where it writes them anyway, or there are none. None where it never does.
    pub fn with_calls(&self, chat: Vec<Value>, first: usize) -> Option<Written> {
        if !chat[first..].iter().any(calls_tools) {
            return Some(Written { chat, text: None });
        }
        let render = |chat: &[Value]| self.template.render(chat, false, &self.options).ok();
        let change = |change: &dyn Fn(&Value) -> Value| {
            let (before, own) = chat.split_at(first);
            let changed = own.iter().map(|message| {
                let changed = calls_tools(message).then(|| change(message));
                changed.unwrap_or_else(|| message.clone())
            });
            before.iter().cloned().chain(changed).collect::<Vec<_>>()
        };
        let without = |message: &Value| with_keys(message, &[("tool_calls", Value::UNDEFINED)]);
        let null = |message: &Value| match text_of(message, "content").trim() {
            "" => with_keys(message, &[("content", Value::from(()))]),
            _ => message.clone(),
        };
        let silent = render(&change(&without));
        let text = render(&chat);
        if text.is_none() || text != silent {
            return Some(Written { chat, text });
        }
        let nulls = change(&null);
        let name = chat[first..].iter().find_map(called)?;
        let count = |text: &Option<String>| {
            let text = text.as_ref();
            text.map_or(0, |text| text.matches(&name).count())
        };
        let text = render(&nulls);
        (count(&text) > count(&silent)).then_some(Written { chat: nulls, text })
    }

    /// Whether a chat may be rendered again for the sake of one of its messages, so that all work is in proportion to
    /// the chat's length.
    pub fn may_render(&self, chat: &[Value]) -> bool {
        if chat.len() <= SHORT {
            return true;
        }
        self.renderings.set(self.renderings.get() + 1);
        self.renderings.get() <= MOST_RENDERINGS
    }

    pub fn render(
        &self,
        field: &'static str,
        messages: &[Value],
        add: bool,
    ) -> Result<String, Reject> {
        self.template
            .render(messages, add, &self.options)
            .map_err(|error| {
                let last = messages.last().map(ToString::to_string).unwrap_or_default();
                let rule = format!("the chat template must render the chat; it says: {error}");
                let remedy = "change the row, or pass another chat_template";
                Reject::new(field, &last, "template", rule, remedy)
            })
    }

    /// The chat's text where it renders and `text` begins with it.
    pub fn prefix(&self, messages: &[Value], add: bool, text: &str) -> Option<usize> {
        let prefix = self.template.render(messages, add, &self.options).ok()?;
        text.starts_with(&prefix).then_some(prefix.len())
    }
}

/// The name of the first function that a message calls.
fn called(message: &Value) -> Option<String> {
    let calls = message.get_attr("tool_calls").ok()?;
    let call = calls.get_item_by_index(0).ok()?;
    let function = call
        .get_attr("function")
        .ok()
        .filter(|value| !value.is_undefined());
    let name = text_of(&function.unwrap_or(call), "name");
    (!name.is_empty()).then_some(name)
}

/// Bytes of two texts that are compared at once.
const STEP: usize = 64;

/// How many bytes two texts begin with alike, whole characters.
pub fn shared_bytes(one: &str, other: &str) -> usize {
    let alike = |(a, b): &(&[u8], &[u8])| a == b;
    let (a, b) = (one.as_bytes(), other.as_bytes());
    let whole = a.chunks_exact(STEP).zip(b.chunks_exact(STEP));
    let from = STEP * whole.take_while(alike).count();
    let rest = a[from..].iter().zip(&b[from..]);
    let mut shared = from + rest.take_while(|(a, b)| a == b).count();
    while !one.is_char_boundary(shared) {
        shared -= 1;
    }
    shared
}

/// A message with other values under these keys, and without those whose value is undefined.
pub fn with_keys(message: &Value, keys: &[(&str, Value)]) -> Value {
    let given = |key: &Value| keys.iter().find(|(name, _)| key.as_str() == Some(name));
    let kept = message.try_iter().into_iter().flatten().map(|key| {
        let value = match given(&key) {
            Some((_, value)) => value.clone(),
            None => message.get_item(&key).unwrap_or_default(),
        };
        (key, value)
    });
    let absent = |name: &str| {
        message
            .get_attr(name)
            .is_ok_and(|value| value.is_undefined())
    };
    let added = keys.iter().filter(|(name, _)| absent(name));
    let added = added.map(|(name, value)| (Value::from(*name), value.clone()));
    kept.chain(added)
        .filter(|(_, value)| !value.is_undefined())
        .collect()
}

pub fn calls_tools(message: &Value) -> bool {
    let calls = message.get_attr("tool_calls");
    calls.is_ok_and(|calls| calls.is_true())
}

pub fn text_of(message: &Value, key: &str) -> String {
    let value = message.get_attr(key).unwrap_or_default();
    value.as_str().unwrap_or_default().to_string()
}

pub fn values(field: &'static str, messages: &[Message]) -> Result<Vec<Value>, Reject> {
    let convert = |message: &Message| {
        message.to_value().map_err(|error| {
            let extra = message.extra.as_deref().unwrap_or_default();
            let remedy = "extra is a JSON object or null";
            Reject::new(field, extra, "broken_json", error.to_string(), remedy)
        })
    };
    messages.iter().map(convert).collect()
}
