//! A template compiled for the sandbox: every operation that can grow a value or look at one goes through ours.
//!
//! The engine's compiler is used as it is. Its instructions are then rewritten so that operators, filters, tests and
//! methods become calls of functions named by a sign and the name (`+`, `|trim`, `?string`, `.strip`), see `operators`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{LazyLock, Mutex, PoisonError};

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Vm, WhitespaceConfig, make_string_output, parse,
};
use minijinja::{AutoEscape, Environment, Error, Value};

use super::{filters, sandbox, trace};

const NAME: &str = "chat_template";

pub struct Engine {
    environment: Environment<'static>,
    program: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
    /// Whether contents can be followed through a rendering: chained comparisons are not rewritten.
    pub traceable: bool,
}

impl Engine {
    #[allow(clippy::default_trait_access)] // the syntax's type is not public
    pub fn compile(source: &str, now: i64) -> Result<Self, Error> {
        let source = keep(source);
        let spaces = WhitespaceConfig {
            keep_trailing_newline: false,
            lstrip_blocks: true,
            trim_blocks: true,
        };
        let tree = parse(source, NAME, Default::default(), spaces)?;
        let mut generator = CodeGenerator::new(NAME, source);
        generator.compile_stmt(&tree);
        let (program, blocks) = generator.finish();
        let mut rewriter = Rewriter::default();
        let program = rewriter.rewrite(&program);
        let blocks = blocks
            .iter()
            .map(|(name, block)| (*name, rewriter.rewrite(block)))
            .collect();
        let mut environment = Environment::new();
        environment.set_fuel(Some(sandbox::FUEL));
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

    /// `input_bytes`: the size of what the template is given, which its work may be a multiple of.
    pub fn run(&self, context: Value, input_bytes: usize) -> Result<String, Error> {
        sandbox::begin(input_bytes);
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        Vm::new(&self.environment).eval(
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

#[derive(Default)]
struct Rewriter {
    names: BTreeSet<&'static str>,
    chained: bool,
}

impl Rewriter {
    fn call(&mut self, name: &str, count: Option<u16>) -> Instruction<'static> {
        let name = keep(name);
        self.names.insert(name);
        Instruction::CallFunction(name, count)
    }

    fn rewrite(&mut self, old: &Instructions<'static>) -> Instructions<'static> {
        let mut new = Instructions::new(old.name(), old.source());
        let mut places = Vec::with_capacity(old.len() + 1);
        for index in 0..old.len() as u32 {
            places.push(new.len() as u32);
            let Some(instruction) = old.get(index) else {
                break;
            };
            let line = old.get_line(index).unwrap_or(0) as u16;
            for replacement in self.replace(instruction) {
                new.add_with_line(replacement, line);
            }
        }
        places.push(new.len() as u32);
        let place = |target: u32| places.get(target as usize).copied().unwrap_or(target);
        for index in 0..new.len() as u32 {
            if let Some(
                Instruction::Iterate(target)
                | Instruction::Jump(target)
                | Instruction::JumpIfFalse(target)
                | Instruction::JumpIfFalseOrPop(target)
                | Instruction::JumpIfTrueOrPop(target)
                | Instruction::BuildMacro(_, target, _),
            ) = new.get_mut(index)
            {
                *target = place(*target);
            }
        }
        new
    }

    fn replace(&mut self, instruction: &Instruction<'static>) -> Vec<Instruction<'static>> {
        use Instruction as I;
        let operator = match instruction {
            I::Add => Some("+"),
            I::Mul => Some("*"),
            I::StringConcat => Some("~"),
            I::Eq => Some("=="),
            I::Ne => Some("!="),
            I::Lt => Some("<"),
            I::Lte => Some("<="),
            I::Gt => Some(">"),
            I::Gte => Some(">="),
            I::In => Some("in"),
            _ => None,
        };
        if let Some(name) = operator {
            return vec![self.call(name, Some(2))];
        }
        match instruction {
            I::EmitRaw(text) => vec![I::LoadConst(Value::from(*text)), I::Emit],
            I::ApplyFilter(name, count, _) => vec![self.call(&format!("|{}", plain(name)), *count)],
            I::PerformTest(name, count, _) => vec![self.call(&format!("?{}", plain(name)), *count)],
            I::CallMethod(name, count) => vec![self.call(&format!(".{name}"), *count)],
            I::CallFunction(..)
            | I::CallObject(_)
            | I::EndCapture
            | I::Slice
            | I::BuildList(_)
            | I::BuildMap(_) => vec![instruction.clone(), self.call("$", Some(1))],
            other => {
                self.chained |= matches!(other, I::CompareAndPreserve(_));
                vec![other.clone()]
            }
        }
    }
}

/// A filter's or test's name without the spaces that the parser leaves in it.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_whitespace()).collect()
}
