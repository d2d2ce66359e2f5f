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
mod marks;
mod operators;
mod python;
mod sandbox;
mod shape;
mod strip;
mod trace;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use minijinja::ErrorKind;
use minijinja::value::{DynObject, Value, ValueKind};
use serde_json::{Map, Value as Json};

use crate::message::Message;
use crate::{Error, Result};
use engine::Engine;
use input::parse_object;
pub use input::{Options, parse_messages, to_json_object};
use learn::Shapes;
pub use marks::{MARKS, is_mark};
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
    bounds: Bounds,
}

/// How often the template was within its bounds, and how often it was not: one that mostly is not is not run on.
#[derive(Default)]
struct Bounds {
    kept: AtomicUsize,
    exceeded: AtomicUsize,
    rule: OnceLock<String>,
}

impl Bounds {
    /// Renderings that may exceed the bounds before the template is given up.
    const PATIENCE: usize = 4;

    /// Why the template is not run any more.
    fn refusal(&self) -> Option<minijinja::Error> {
        let exceeded = self.exceeded.load(Ordering::Relaxed);
        if exceeded < Self::PATIENCE || exceeded <= self.kept.load(Ordering::Relaxed) {
            return None;
        }
        let rule = self.rule.get()?.clone();
        Some(minijinja::Error::new(ErrorKind::OutOfFuel, rule))
    }

    fn count<T>(&self, result: &std::result::Result<T, minijinja::Error>) {
        match result {
            Err(error) if error.kind() == ErrorKind::OutOfFuel => {
                self.rule.get_or_init(|| describe(error));
                self.exceeded.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                self.kept.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
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
        let mut refused = reference.is_none();
        let engine = Engine::compile(&without_generation_tags(source), now).map_err(|error| {
            refused |= error.kind() == ErrorKind::OutOfFuel; // another renderer would not bear it either
            Error::Argument(format!(
                "chat_template does not compile: {}",
                describe(&error)
            ))
        });
        if refused {
            engine.as_ref().map_err(Clone::clone)?;
        }
        Ok(Self {
            engine,
            source: source.to_owned(),
            special_tokens: parse_object("special_tokens", special_tokens)?,
            reference,
            shapes: Shapes::default(),
            bounds: Bounds::default(),
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
        if let Some(refusal) = self.bounds.refusal() {
            return Err(refusal);
        }
        let mut context: Vec<(&str, Value)> = vec![("documents", Value::from(()))];
        for (name, value) in self.special_tokens.iter().chain(&options.variables) {
            context.push((name, Value::from_serialize(value)));
        }
        context.push(("messages", Value::from(messages.to_vec())));
        context.push(("tools", Value::from_serialize(&options.tools)));
        context.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        let input = context.iter().map(|(_, value)| input_size(value)).sum();
        let result = engine.run(context.into_iter().collect(), input);
        self.bounds.count(&result);
        result
    }
}

/// Bytes of the texts in a value of the input, at every depth, with some for each list, mapping and element.
fn input_size(value: &Value) -> usize {
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
    let mut parts = source.split("{%");
    out.push_str(parts.next().unwrap_or_default());
    for tag in parts {
        out.push_str("{%");
        let word = tag.trim_start_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let found = [("generation", "if true"), ("endgeneration", "endif")]
            .into_iter()
            .find_map(|(word_of_tag, other)| Some((word.strip_prefix(word_of_tag)?, other)));
        let end = found.map(|(rest, _)| rest.trim_start());
        match (found, end) {
            (Some((rest, other)), Some(end)) if is_end(end) => {
                out.push_str(&tag[..tag.len() - word.len()]);
                out.push_str(other);
                out.push_str(rest);
            }
            _ => out.push_str(tag),
        }
    }
    out
}

/// Whether a tag ends here.
fn is_end(rest: &str) -> bool {
    rest.strip_prefix(['-', '+'])
        .unwrap_or(rest)
        .starts_with("%}")
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
    fn a_template_that_exceeds_its_bounds_is_given_up() -> Result<()> {
        let source = "{% if messages[0].content == 'a' %}{{ 'a' * 999999999 }}{% endif %}b";
        let template = ChatTemplate::new(source, "{}", 0, None)?;
        let render = |content| {
            let message = Message::new("user", content).to_value()?;
            template.render(&[message], false, &Options::default())
        };
        assert_eq!(render("b")?, "b");
        for _ in 0..4 {
            assert!(render("a").is_err());
        }
        let error = render("b").expect_err("given up").to_string();
        let rule = "the template makes more than 64 MiB of text and values (template line 1)";
        assert_eq!(error, rule);
        Ok(())
    }

    #[test]
    fn files_are_out_of_reach() {
        assert!(render("{% include '/etc/hostname' %}", "{}").is_err());
    }
}
