//! What a template is given, from JSON: messages, tools, variables.

use minijinja::value::{DynObject, Value, ValueKind};
use serde_json::{Map, Value as Json};

use crate::message::Message;
use crate::{Error, Result};

/// What a template is given besides the variables.
const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];
/// Names under which a message's reasoning is passed; the first is what templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl Message<'_> {
    /// The message as the template sees it.
    pub fn to_value(&self) -> Result<Value> {
        let mut map = Map::new();
        map.insert("role".into(), self.role.into());
        map.insert("content".into(), self.content.as_ref().into());
        if let Some(extra) = &self.extra {
            for (key, value) in parse_object("extra", extra)? {
                map.entry(key).or_insert(value);
            }
        }
        Ok(Value::from_serialize(alias_reasoning(map)))
    }
}

/// What goes into a rendering besides the messages.
#[derive(Debug, Clone)]
pub struct Options {
    pub(super) tools: Option<Json>,
    pub(super) variables: Map<String, Json>,
    pub(super) given: Given,
}

/// The same as the engine takes it, made once for all renderings.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub tools: Value,
    pub variables: Variables,
    pub size: usize, // of tools, and of what is given besides variables and messages
}

/// Variables of a template, and their size.
#[derive(Debug, Clone)]
pub(super) struct Variables {
    values: Vec<(String, Value)>,
    pub size: usize,
}

impl Variables {
    pub fn new(variables: &Map<String, Json>) -> Self {
        let value = |(name, value): (&String, &Json)| (name.clone(), Value::from_serialize(value));
        let values: Vec<_> = variables.iter().map(value).collect();
        let size = values.iter().map(|(_, value)| input_size(value)).sum();
        Self { values, size }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, Value)> {
        self.values
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()))
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Options {
    fn new(tools: Option<Json>) -> Self {
        let variables = Map::new();
        let value = Value::from_serialize(&tools);
        let (documents, add_generation_prompt) = (Value::from(()), Value::from(false));
        let given = [&value, &documents, &add_generation_prompt];
        Self {
            given: Given {
                variables: Variables::new(&variables),
                size: given.into_iter().map(input_size).sum(),
                tools: value,
            },
            tools,
            variables,
        }
    }

    /// `tools`: a JSON list, or null; `variables`: a JSON object.
    pub fn parse(tools: Option<&str>, variables: Option<&str>) -> Result<Self> {
        Self::of_tools(tools)?.with_variables(variables)
    }

    pub fn of_tools(tools: Option<&str>) -> Result<Self> {
        let tools = match tools {
            None => None,
            Some(text) => match parse_json("tools", text)? {
                Json::Null => None,
                list @ Json::Array(_) => Some(list),
                other => return Err(not_a("tools", "list", &other)),
            },
        };
        Ok(Self::new(tools))
    }

    pub fn with_variables(mut self, variables: Option<&str>) -> Result<Self> {
        if let Some(text) = variables {
            self.variables = parse_object("template_kwargs", text)?;
            self.given.variables = Variables::new(&self.variables);
        }
        let given = |name: &&&str| self.variables.contains_key(**name);
        if let Some(name) = RESERVED.iter().find(given) {
            return Err(Error::Argument(format!(
                "template_kwargs must leave '{name}' alone, which the row's own fields and the call say"
            )));
        }
        Ok(self)
    }
}

/// Bytes of the texts in a value of the input, at every depth, with some for each list, mapping and element.
pub(super) fn input_size(value: &Value) -> usize {
    const ELEMENT: usize = 64;
    let object = value.as_object();
    let nested: usize = match (value.as_str(), value.kind()) {
        (Some(text), _) => text.len(),
        (None, ValueKind::Map) => {
            let pairs = object.and_then(DynObject::try_iter_pairs);
            let size = |(key, item): (Value, Value)| input_size(&key) + input_size(&item);
            pairs.into_iter().flatten().map(size).sum()
        }
        _ => {
            let items = object.and_then(DynObject::try_iter);
            items
                .into_iter()
                .flatten()
                .map(|item| input_size(&item))
                .sum()
        }
    };
    ELEMENT + nested
}

/// Messages from a JSON list of objects, as a template sees them.
pub fn parse_messages(json: &str) -> Result<Vec<Value>> {
    let list = match parse_json("messages", json)? {
        Json::Array(list) => list,
        other => return Err(not_a("messages", "list", &other)),
    };
    let message = |message: Json| match message {
        Json::Object(map) => Ok(Value::from_serialize(alias_reasoning(map))),
        other => Err(not_a("a message", "object", &other)),
    };
    list.into_iter().map(message).collect()
}

/// Names and strings as a JSON object.
pub fn to_json_object(pairs: &[(String, String)]) -> String {
    let map: Map<String, Json> = pairs
        .iter()
        .map(|(name, text)| (name.clone(), text.as_str().into()))
        .collect();
    Json::Object(map).to_string()
}

/// As transformers does: `reasoning_content` is filled from its older names, and `thinking` from any.
fn alias_reasoning(message: Map<String, Json>) -> Map<String, Json> {
    let Some(reasoning) = REASONING
        .iter()
        .find_map(|name| message.get(*name).filter(|v| !v.is_null()))
        .cloned()
    else {
        return message;
    };
    let mut aliased = Map::new();
    aliased.insert("thinking".into(), reasoning.clone());
    aliased.extend(message);
    aliased.insert("reasoning_content".into(), reasoning);
    aliased
}

fn parse_json(name: &str, text: &str) -> Result<Json> {
    serde_json::from_str(text)
        .map_err(|error| Error::Argument(format!("{name} is not JSON: {error}")))
}

pub(super) fn parse_object(name: &str, text: &str) -> Result<Map<String, Json>> {
    match parse_json(name, text)? {
        Json::Object(map) => Ok(map),
        Json::Null => Ok(Map::new()),
        other => Err(not_a(name, "object", &other)),
    }
}

fn not_a(name: &str, what: &str, value: &Json) -> Error {
    Error::Argument(format!("{name} must be a JSON {what}, got {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_is_aliased() {
        let message = Message {
            extra: Some(r#"{"thinking": "2+2"}"#.into()),
            ..Message::new("assistant", "4")
        };
        let value = message.to_value().expect("valid");
        assert_eq!(
            value
                .get_attr("reasoning_content")
                .expect("there")
                .to_string(),
            "2+2"
        );
    }
}
