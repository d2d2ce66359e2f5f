//! The template with what one row brings to it, and messages as it takes them.

use minijinja::value::Value;

use crate::message::Message;
use crate::reject::Reject;
use crate::template::{ChatTemplate, Options};
use crate::tokenize::input::Row;

/// The template with what one row brings to it.
pub struct Chat<'a> {
    pub template: &'a ChatTemplate,
    pub options: Options,
    pub prompt: Vec<Value>,
}

impl<'a> Chat<'a> {
    pub fn new(template: &'a ChatTemplate, row: &Row) -> Result<Self, Reject> {
        let options = Options::parse(row.tools, row.template_kwargs).map_err(|error| {
            let value = row.template_kwargs.or(row.tools).unwrap_or_default();
            let remedy = "tools is a JSON list, template_kwargs a JSON object";
            Reject::new(
                "template_kwargs",
                value,
                "broken_json",
                error.to_string(),
                remedy,
            )
        })?;
        Ok(Self {
            template,
            options,
            prompt: values("prompt", &row.prompt)?,
        })
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
