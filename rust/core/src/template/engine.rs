//! A template compiled for the sandbox: every operation that can grow a value or look at one goes through ours.
//!
//! The engine's parser and compiler are used as they are, on a source whose nesting is bounded. The instructions are then
//! rewritten so that operators, filters, tests and methods become calls of functions named by a sign and the name (`+`,
//! `|trim`, `?string`, `.strip`), see `operators`.

mod nesting;
mod rewrite;
mod unfold;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::{LazyLock, Mutex, PoisonError};

use minijinja::machinery::{
    CodeGenerator, Instructions, Vm, WhitespaceConfig, make_string_output, parse,
};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::{filters, sandbox, trace};
use rewrite::Rewriter;

const NAME: &str = "chat_template";
/// Bytes of stack for the parser and the compiler: `nesting` bounds their recursion, of which a step takes a few thousand.
const STACK: usize = 64 << 20;

type Program = (
    Instructions<'static>,
    BTreeMap<&'static str, Instructions<'static>>,
);

pub struct Engine {
    environment: Environment<'static>,
    program: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
    /// Whether contents can be followed through a rendering: chained comparisons are not rewritten.
    pub traceable: bool,
}

impl Engine {
    /// An error of the kind `OutOfFuel` is about a bound: no renderer may be asked.
    pub fn compile(source: &str, now: i64) -> Result<Self, Error> {
        nesting::check(source, SPACES)?;
        let source = keep(source);
        let (program, blocks) = with_stack(|| compile(source))?;
        let mut rewriter = Rewriter::default();
        let program = rewriter.rewrite(&program);
        let blocks = blocks
            .iter()
            .map(|(name, block)| (*name, rewriter.rewrite(block)))
            .collect();
        let mut environment = Environment::new();
        environment.set_fuel(Some(sandbox::FUEL));
        environment.set_recursion_limit(sandbox::FRAMES);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        filters::install(&mut environment, now);
        trace::install(&mut environment, &rewriter.names);
        Ok(Self {
            environment,
            program,
            blocks,
            traceable: !rewriter.chained,
        })
    }

    /// `input`: the size of what the template is given, which its work may be a multiple of.
    pub fn run(&self, context: Value, input: usize) -> Result<String, Error> {
        sandbox::begin(input);
        let mut environment = Cow::Borrowed(&self.environment);
        if input >= sandbox::LARGE {
            let fuel = sandbox::fuel(input);
            environment.to_mut().set_fuel(Some(fuel));
        }
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        Vm::new(&environment).eval(
            &self.program,
            context,
            &self.blocks,
            &mut out,
            AutoEscape::None,
        )?;
        drop(out);
        Ok(text)
    }
}

const SPACES: WhitespaceConfig = WhitespaceConfig {
    keep_trailing_newline: false,
    lstrip_blocks: true,
    trim_blocks: true,
};

#[allow(clippy::default_trait_access)] // the syntax's type is not public
fn compile(source: &'static str) -> Result<Program, Error> {
    let tree = unfold::statement(&parse(source, NAME, Default::default(), SPACES)?);
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&tree);
    Ok(generator.finish())
}

/// What `work` gives on a thread of its own, whose stack suffices whatever that of the caller.
fn with_stack<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|error| {
                Error::new(
                    ErrorKind::OutOfFuel,
                    format!("no thread could be started to compile the template: {error}"),
                )
            })?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The text for the life of the process, once for equal ones: instructions borrow names from their source.
fn keep(text: &str) -> &'static str {
    static KEPT: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kept.get(text) {
        return known;
    }
    let text: &'static str = Box::leak(text.into());
    kept.insert(text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_at(source: &str, x: Value) -> usize {
        let engine = Engine::compile(source, 0).expect("compiles");
        let context = [("x", x)].into_iter().collect();
        engine.run(context, 0).expect("renders");
        sandbox::looked_at()
    }

    /// Each of these walks a text or a list, and is charged for twice as much where that is twice as long.
    #[test]
    fn work_grows_with_what_is_walked() {
        const SIZE: usize = 10_000;
        let texts = [
            "{{ 'c' in x }}",
            "{{ x == x ~ '' }}",
            "{{ x < x ~ '' }}",
            "{{ 1 < 2 == (x == x ~ '') }}",
            "{{ x[-1] }}",
            "{{ x[1:2] }}",
            "{{ x|length }}",
            "{{ x|trim }}",
            "{{ x|replace('c', 'd') }}",
            "{{ x.count('c') }}",
            "{{ x.startswith('c') }}",
            "{{ x is lower }}",
            "{{ x in ['c', 'd'] }}",
            "{{ {x: 1}[x] }}",
            "{{ [x]|sort }}",
            "{{ [x]|join }}",
            "{% for c in x %}{% break %}{% endfor %}",
        ];
        for source in texts {
            let [once, twice] =
                [SIZE, 2 * SIZE].map(|size| looked_at(source, Value::from("a".repeat(size))));
            assert!(twice >= once + SIZE / 2, "{source}: {once} {twice}");
        }
        let lists = [
            "{{ -1 in x }}",
            "{{ x == x[:] }}",
            "{{ x <= x[:] }}",
            "{{ 1 < 2 == (x == x[:]) }}",
            "{{ x[1:2] }}",
            "{{ x|sum }}",
            "{{ x|min }}",
            "{{ x|max }}",
            "{{ x|sort|first }}",
            "{{ x|unique|first }}",
            "{{ x|join }}",
            "{{ x|list|first }}",
            "{{ x|tojson }}",
            "{{ x|map('string')|first }}",
            "{{ x|select('odd')|first }}",
            "{{ x|reject|first }}",
            "{{ x|batch(2)|first }}",
            "{{ x|zip(x)|first }}",
            "{{ x|chain(x)|first }}",
            "{{ x|reverse|first }}",
            "{{ x|last }}",
            "{{ (x + x)|first }}",
            "{{ (x * 2)|first }}",
            "{{ x is eq x[:] }}",
            "{{ x.count(1) }}",
            "{{ [[1]|zip(*x[:3])] }}{{ x|length }}{{ x[:]|length }}",
            "{% set ns = namespace(y=x) %}",
            "{% set ns = namespace() %}{% set ns.y = x %}",
            "{% for c in x %}{% break %}{% endfor %}",
        ];
        for source in lists {
            let [once, twice] = [SIZE, 2 * SIZE].map(|size| {
                looked_at(
                    source,
                    Value::from((0..size).map(Value::from).collect::<Vec<_>>()),
                )
            });
            assert!(twice >= once + SIZE, "{source}: {once} {twice}");
        }
        let constant = [
            "{{ x|length }}",
            "{{ x|first }}",
            "{{ x[0] }}",
            "{{ x is defined }}",
            "{{ x == 1 }}",
        ];
        for source in constant {
            let list = |size| Value::from((0..size).map(Value::from).collect::<Vec<_>>());
            assert_eq!(
                looked_at(source, list(10)),
                looked_at(source, list(1000)),
                "{source}"
            );
        }
    }
}
