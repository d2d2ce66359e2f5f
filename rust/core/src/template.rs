//! Chat templates: Jinja as transformers renders it, sandboxed (no files, bounded work).
//!
//! Same environment as transformers: `trim_blocks`, `lstrip_blocks`, loop controls, Python's string methods,
//! `tojson` as `json.dumps(ensure_ascii=False)`, `raise_exception`, `strftime_now`. A `{% generation %}` block
//! renders as its content.

mod content;
mod dates;
mod engine;
mod filters;
mod input;
mod learn;
mod operators;
mod python;
mod sandbox;
mod shape;
mod strip;
mod trace;

use std::sync::Arc;

use minijinja::ErrorKind;
use minijinja::value::Value;
use serde_json::{Map, Value as Json};

use crate::message::Message;
use crate::{Error, Result};
use engine::Engine;
use input::parse_object;
pub use input::{Options, parse_messages, to_json_object};
use learn::Shapes;
pub use shape::{Place, Places, Shape};

/// Another renderer, which is asked for what the engine does not know: messages, whether a generation prompt is added,
/// tools, variables (JSON texts), and why it is asked.
pub type Reference =
    Box<dyn Fn(&str, bool, Option<&str>, Option<&str>, &str) -> Result<String> + Send + Sync>;

/// A compiled chat template with the tokenizer's special tokens.
pub struct ChatTemplate {
    engine: Result<Engine>,
    source: String,
    special_tokens: Map<String, Json>,
    reference: Option<Reference>,
    shapes: Shapes,
}

impl ChatTemplate {
    /// `special_tokens`: a JSON object such as `{"eos_token": "</s>"}`; `now`: seconds since 1970 in local time, for `strftime_now`.
    /// `reference` renders what the engine cannot; without one that is an error.
    ///
    /// ```
    /// # use pyprefopt_core::message::Message;
    /// # use pyprefopt_core::template::{ChatTemplate, Options};
    /// let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}";
    /// let template = ChatTemplate::new(source, r#"{"eos_token": "</s>"}"#, 0, None)?;
    /// let chat = [Message::new("user", "Hi").to_value()?];
    /// assert_eq!(template.render(&chat, false, &Options::default())?, "user: Hi</s>");
    /// # Ok::<(), pyprefopt_core::Error>(())
    /// ```
    pub fn new(
        source: &str,
        special_tokens: &str,
        now: i64,
        reference: Option<Reference>,
    ) -> Result<Self> {
        let engine = Engine::compile(&without_generation_tags(source), now).map_err(|error| {
            Error::Argument(format!(
                "chat_template does not compile: {}",
                describe(&error)
            ))
        });
        if reference.is_none() {
            engine.as_ref().map_err(Clone::clone)?;
        }
        Ok(Self {
            engine,
            source: source.to_owned(),
            special_tokens: parse_object("special_tokens", special_tokens)?,
            reference,
            shapes: Shapes::default(),
        })
    }

    /// Why the engine cannot render this template; None where it can.
    pub fn refusal(&self) -> Option<String> {
        self.engine.as_ref().err().map(ToString::to_string)
    }

    /// Whether the template's source holds a text outside of its comments.
    pub fn mentions(&self, text: &str) -> bool {
        let mut parts = self.source.split("{#");
        let code = |part: &str| {
            part.split_once("#}")
                .is_some_and(|part| part.1.contains(text))
        };
        parts.next().is_some_and(|first| first.contains(text)) || parts.any(code)
    }

    /// The chat as text.
    pub fn render(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
        options: &Options,
    ) -> Result<String> {
        let why = match &self.engine {
            Err(error) => error.to_string(),
            Ok(engine) => match self.run(engine, messages, add_generation_prompt, options) {
                Ok(text) => return Ok(text),
                Err(error) if self.reference.is_some() && is_unknown(&error) => describe(&error),
                Err(error) => return Err(Error::Argument(describe(&error))),
            },
        };
        let Some(reference) = &self.reference else {
            return Err(Error::Argument(why));
        };
        let chat = serde_json::to_string(messages)
            .map_err(|error| Error::Argument(format!("messages have no JSON form: {error}")))?;
        reference(
            &chat,
            add_generation_prompt,
            options.tools.as_ref().map(Json::to_string).as_deref(),
            Some(&Json::Object(options.variables.clone()).to_string()),
            &why,
        )
    }

    /// The shape of a chat whose last message is the response; None where the general way must be gone.
    pub fn shape(&self, chat: &[&Message]) -> Option<Arc<Shape>> {
        let engine = self
            .engine
            .as_ref()
            .ok()
            .filter(|engine| engine.traceable)?;
        let options = Options::default();
        let render = |messages: &[Value], add| self.run(engine, messages, add, &options);
        self.shapes.find(chat, &render)
    }

    /// Shapes learned so far.
    pub fn shape_count(&self) -> usize {
        self.shapes.count()
    }

    fn run(
        &self,
        engine: &Engine,
        messages: &[Value],
        add_generation_prompt: bool,
        options: &Options,
    ) -> std::result::Result<String, minijinja::Error> {
        let mut context: Vec<(&str, Value)> = vec![("documents", Value::from(()))];
        for (name, value) in self.special_tokens.iter().chain(&options.variables) {
            context.push((name, Value::from_serialize(value)));
        }
        context.push(("messages", Value::from(messages.to_vec())));
        context.push(("tools", Value::from_serialize(&options.tools)));
        context.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        let input_bytes = messages.iter().map(text_bytes).sum();
        engine.run(context.into_iter().collect(), input_bytes)
    }
}

/// Bytes of the texts in a message, at the first level.
fn text_bytes(message: &Value) -> usize {
    let keys = message.try_iter().into_iter().flatten();
    let text = |key: Value| message.get_item(&key).ok()?.as_str().map(str::len);
    keys.filter_map(text).sum()
}

/// Whether the engine lacks what the template asks for, as opposed to a refusal or a fault of the template's own.
fn is_unknown(error: &minijinja::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnknownFilter
            | ErrorKind::UnknownTest
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownMethod
            | ErrorKind::TooManyArguments
            | ErrorKind::MissingArgument
    )
}

/// The error in one line: the template's own words where it raised them.
fn describe(error: &minijinja::Error) -> String {
    let place = error
        .line()
        .map_or(String::new(), |line| format!(" (template line {line})"));
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, None) => {
            format!(
                "the template runs for more than {} instructions",
                sandbox::FUEL
            )
        }
        (_, Some(detail)) => format!("{detail}{place}"),
        (kind, None) => format!("{kind}{place}"),
    }
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
        ChatTemplate::new(source, "{}", 0, None)?.render(
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
    fn work_and_memory_are_bounded() {
        let nested = "{% for a in range(99) %}{% for b in range(99) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        let doubled = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}";
        for (source, rule) in [(nested, "more than"), (doubled, "64 MiB")] {
            let error = render(source, "{}").expect_err("stops").to_string();
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn files_are_out_of_reach() {
        assert!(render("{% include '/etc/hostname' %}", "{}").is_err());
    }
}
