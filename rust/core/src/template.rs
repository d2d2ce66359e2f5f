//! Chat templates: Jinja as transformers renders it, sandboxed (no files, bounded work).
//!
//! Same environment as transformers: `trim_blocks`, `lstrip_blocks`, loop controls, Python's string methods,
//! `tojson` as `json.dumps(ensure_ascii=False)`, `raise_exception`, `strftime_now`. A `{% generation %}` block
//! renders as its content.

mod filters;

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value as Json};

use crate::{Error, Result};

/// Instructions that one rendering may execute; a long chat takes some ten thousand.
const FUEL: u64 = 20_000_000;
const NAME: &str = "chat_template";
/// Names under which a message's reasoning is passed; the first is what templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One message of a chat; `extra` is a JSON object of further keys (`name`, `tool_calls`, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    pub role: &'a str,
    pub content: &'a str,
    pub extra: Option<&'a str>,
}

impl Message<'_> {
    /// The message as the template sees it.
    pub fn to_value(self) -> Result<Value> {
        let mut map = Map::new();
        map.insert("role".into(), self.role.into());
        map.insert("content".into(), self.content.into());
        if let Some(extra) = self.extra {
            map.extend(parse_object("extra", extra)?);
        }
        Ok(Value::from_serialize(alias_reasoning(map)))
    }
}

/// What goes into a rendering besides the messages.
#[derive(Debug, Clone, Default)]
pub struct Options {
    tools: Option<Json>,
    variables: Map<String, Json>,
}

impl Options {
    /// `tools`: a JSON list, or null; `variables`: a JSON object.
    pub fn parse(tools: Option<&str>, variables: Option<&str>) -> Result<Self> {
        let tools = match tools {
            None => None,
            Some(text) => match parse_json("tools", text)? {
                Json::Null => None,
                list @ Json::Array(_) => Some(list),
                other => return Err(not_a("tools", "list", &other)),
            },
        };
        let variables =
            variables.map_or(Ok(Map::new()), |text| parse_object("template_kwargs", text))?;
        Ok(Self { tools, variables })
    }
}

/// A compiled chat template with the tokenizer's special tokens.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Map<String, Json>,
}

impl ChatTemplate {
    /// `special_tokens`: a JSON object such as `{"eos_token": "</s>"}`; `now`: seconds since 1970 in local time, for `strftime_now`.
    ///
    /// ```
    /// # use pyprefopt_core::template::{ChatTemplate, Message, Options};
    /// let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}";
    /// let template = ChatTemplate::new(source, r#"{"eos_token": "</s>"}"#, 0)?;
    /// let chat = [Message { role: "user", content: "Hi", extra: None }.to_value()?];
    /// assert_eq!(template.render(&chat, false, &Options::default())?, "user: Hi</s>");
    /// # Ok::<(), pyprefopt_core::Error>(())
    /// ```
    pub fn new(source: &str, special_tokens: &str, now: i64) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        filters::install(&mut environment, now);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| {
                Error::Argument(format!(
                    "chat_template does not compile: {}",
                    describe(&error)
                ))
            })?;
        Ok(Self {
            environment,
            special_tokens: parse_object("special_tokens", special_tokens)?,
        })
    }

    /// The chat as text.
    pub fn render(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
        options: &Options,
    ) -> Result<String> {
        let mut context: Vec<(&str, Value)> = Vec::new();
        for (name, value) in self.special_tokens.iter().chain(&options.variables) {
            context.push((name, Value::from_serialize(value)));
        }
        context.push(("messages", Value::from(messages.to_vec())));
        context.push(("tools", Value::from_serialize(&options.tools)));
        context.push(("documents", Value::from(())));
        context.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context.into_iter().collect::<Value>()))
            .map_err(|error| Error::Argument(describe(&error)))
    }
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

/// The error in one line: the template's own words where it raised them.
fn describe(error: &minijinja::Error) -> String {
    let place = error
        .line()
        .map_or(String::new(), |line| format!(" (template line {line})"));
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("the template runs for more than {FUEL} instructions"),
        (_, Some(detail)) => format!("{detail}{place}"),
        (kind, None) => format!("{kind}{place}"),
    }
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

fn parse_object(name: &str, text: &str) -> Result<Map<String, Json>> {
    match parse_json(name, text)? {
        Json::Object(map) => Ok(map),
        Json::Null => Ok(Map::new()),
        other => Err(not_a(name, "object", &other)),
    }
}

fn not_a(name: &str, what: &str, value: &Json) -> Error {
    Error::Argument(format!("{name} must be a JSON {what}, got {value}"))
}

/// `{% generation %}` becomes `{% if true %}`, whitespace control kept.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open + 2);
        out.push_str(before);
        rest = tag;
        let Some(close) = tag.find("%}") else { break };
        let inner = &tag[..close];
        let word = inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let replacement = match word {
            "generation" => " if true ",
            "endgeneration" => " endif ",
            _ => continue,
        };
        let sign = |c: Option<char>| {
            c.filter(|c| "+-".contains(*c))
                .map_or(String::new(), String::from)
        };
        out.push_str(&sign(inner.chars().next()));
        out.push_str(replacement);
        out.push_str(&sign(inner.chars().next_back()));
        rest = &tag[close..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, variables: &str) -> Result<String> {
        ChatTemplate::new(source, "{}", 0)?.render(
            &[],
            false,
            &Options::parse(None, Some(variables))?,
        )
    }

    #[test]
    fn generation_tags_keep_their_whitespace_control() {
        let source = "a {%- generation -%} b {%+ endgeneration %}\nc";
        assert_eq!(
            without_generation_tags(source),
            "a {%- if true -%} b {%+ endif %}\nc"
        );
    }

    #[test]
    fn a_raised_exception_is_told_in_its_own_words() {
        let error = render("{{ raise_exception('no tools here') }}", "{}").expect_err("raises");
        assert_eq!(error.to_string(), "no tools here (template line 1)");
    }

    #[test]
    fn work_is_bounded() {
        let source =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(
            render(source, "{}")
                .expect_err("stops")
                .to_string()
                .contains("instructions")
        );
    }

    #[test]
    fn files_are_out_of_reach() {
        assert!(render("{% include '/etc/hostname' %}", "{}").is_err());
    }

    #[test]
    fn reasoning_is_aliased() {
        let message = Message {
            role: "assistant",
            content: "4",
            extra: Some(r#"{"thinking": "2+2"}"#),
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
