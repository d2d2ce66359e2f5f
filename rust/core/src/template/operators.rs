//! The operations of a rewritten template: Jinja's own, within the sandbox's bounds.

mod admission;
mod sequences;
mod slices;

use minijinja::machinery::{Instruction, Instructions, Vm, make_string_output};
use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Error, ErrorKind, State};

use super::{python, sandbox};

/// An operation that a program calls, by its name.
#[derive(Clone, Copy)]
pub enum Operation {
    /// `|trim`
    Filter(&'static str),
    /// `?string`
    Test(&'static str),
    /// `.strip`
    Method(&'static str),
    Check(Check),
    /// `{` and `}`: a block begins or ends.
    Block(bool),
    Operator(&'static str),
}

/// What is checked of a value that another instruction makes or takes.
#[derive(Clone, Copy)]
pub enum Check {
    /// `$`: it was made.
    Made,
    /// `@`: it is walked.
    Walked,
    /// `=`: it is set in a namespace.
    Set,
    /// `#`: it is a macro.
    Macro,
    /// `**`: its items are lists of arguments.
    Lists,
    /// `***`: its items are mappings of arguments.
    Mappings,
    /// `!`: it names a file.
    File,
}

impl Operation {
    pub fn named(name: &'static str) -> Self {
        match (name.split_at(1), name) {
            (("|", filter), _) => Self::Filter(filter),
            (("?", test), _) => Self::Test(test),
            ((".", method), _) => Self::Method(method),
            (_, "$") => Self::Check(Check::Made),
            (_, "@") => Self::Check(Check::Walked),
            (_, "=") => Self::Check(Check::Set),
            (_, "#") => Self::Check(Check::Macro),
            (_, "**") => Self::Check(Check::Lists),
            (_, "***") => Self::Check(Check::Mappings),
            (_, "!") => Self::Check(Check::File),
            (_, "{" | "}") => Self::Block(name == "{"),
            _ => Self::Operator(name),
        }
    }
}

/// What the operation makes of these values.
pub fn operate(state: &State, operation: Operation, args: &[Value]) -> Result<Value, Error> {
    match (operation, args) {
        (Operation::Filter(name), [_, ..]) => filter(state, name, args),
        (Operation::Test(name), [_, ..]) => test(state, name, args).map(Value::from),
        (Operation::Method(name), [receiver, rest @ ..]) => {
            admission::method(name, receiver, args)?;
            charged(receiver.call_method(state, name, rest)?)
        }
        (Operation::Check(check), [value]) => checked(check, value),
        (Operation::Block(begins), []) => {
            if begins {
                sandbox::enter()?;
            } else {
                sandbox::leave();
            }
            Ok(Value::UNDEFINED)
        }
        (Operation::Operator("[:"), [base, start, end, step]) => {
            charged(slices::slice(base, start, end, step)?)
        }
        (Operation::Operator(name), [left, right]) => operator(state, name, left, right),
        _ => Err(Error::from(ErrorKind::MissingArgument)),
    }
}

/// A value that an operation made; a lazy list becomes one, so that lists of lists of lists have an end.
fn charged(value: Value) -> Result<Value, Error> {
    let value = if value.kind() == ValueKind::Iterable {
        collect(value.try_iter()?)?
    } else {
        value
    };
    sandbox::charge_value(&value)?;
    Ok(value)
}

fn collect(items: impl Iterator<Item = Value>) -> Result<Value, Error> {
    let mut list = Vec::new();
    for item in items {
        if list.len() % 64 == 0 {
            sandbox::allows(list.len().saturating_mul(sandbox::VALUE))?;
        }
        list.push(item);
    }
    Ok(Value::from(list))
}

/// What is done to a value that another instruction takes next.
fn checked(check: Check, value: &Value) -> Result<Value, Error> {
    match check {
        Check::Made => return charged(value.clone()),
        Check::Walked => {
            sandbox::look_at_items(value)?;
        }
        Check::Set => sandbox::check_set(value)?,
        Check::Macro => sandbox::charge_macro()?,
        Check::Lists => {
            let mut items = Vec::new();
            for list in value.try_iter()? {
                let count = sandbox::look_at_items(&list)?;
                sandbox::allows((items.len() + count).saturating_mul(sandbox::VALUE))?;
                items.extend(list.try_iter()?);
            }
            return Ok(Value::from(vec![Value::from(items)]));
        }
        Check::Mappings => {
            for mapping in value.try_iter()? {
                sandbox::look_at_items(&mapping)?;
            }
        }
        Check::File => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "include, import and extends read files, which a chat template may not",
            ));
        }
    }
    Ok(value.clone())
}

/// Apply a filter by its name.
pub fn filter(state: &State, name: &str, args: &[Value]) -> Result<Value, Error> {
    sandbox::check_growth(name, args)?;
    admission::filter(name, args)?;
    let value = match name {
        "map" => sequences::map(state, args)?,
        "select" | "reject" | "selectattr" | "rejectattr" => sequences::select(state, name, args)?,
        "chain" => chain(state, args)?,
        _ => state.apply_filter(name, args)?,
    };
    charged(value)
}

/// The lists or mappings one after another.
fn chain(state: &State, args: &[Value]) -> Result<Value, Error> {
    let value = state.apply_filter("chain", args)?;
    match value.kind() {
        ValueKind::Map => value
            .try_iter()?
            .map(|key| value.get_item(&key).map(|item| (key, item)))
            .collect::<Result<Value, _>>(),
        _ => collect(value.try_iter()?),
    }
}

/// Answer a test by its name.
pub fn test(state: &State, name: &str, args: &[Value]) -> Result<bool, Error> {
    let comparison = match name {
        "eq" | "equalto" => Some("=="),
        "ne" => Some("!="),
        "lt" | "lessthan" => Some("<"),
        "le" => Some("<="),
        "gt" | "greaterthan" => Some(">"),
        "ge" => Some(">="),
        "in" | "==" | "!=" | "<" | "<=" | ">" | ">=" => Some(name),
        _ => None,
    };
    if let (Some(name), [left, right]) = (comparison, args) {
        return match operator(state, name, left, right) {
            Ok(answer) => Ok(answer.is_true()),
            Err(error) if name == "in" && error.kind() != ErrorKind::OutOfFuel => Ok(false),
            Err(error) => Err(error),
        };
    }
    if matches!(name, "startingwith" | "endingwith") {
        for arg in args {
            sandbox::allows(sandbox::measure(arg)?)?;
        }
    }
    args.iter().try_for_each(sandbox::look_at_text)?;
    state.perform_test(name, args)
}

fn operator(state: &State, name: &str, left: &Value, right: &Value) -> Result<Value, Error> {
    let flag = |truth: bool| Ok(Value::from(truth));
    if matches!(name, "==" | "!=" | "<" | "<=" | ">" | ">=" | "&") {
        sandbox::look_at_both(left, right)?;
    }
    match name {
        "==" => flag(left == right),
        "!=" => flag(left != right),
        "<" => flag(left < right),
        "<=" => flag(left <= right),
        ">" => flag(left > right),
        ">=" => flag(left >= right),
        "&" => {
            admission::search(left, right)?;
            Ok(Value::from(vec![right.clone(), left.clone()]))
        }
        "in" => contains(state, left, right),
        "~" => {
            let (mut text, right) = (python::to_text(left)?, python::to_text(right)?);
            sandbox::charge(text.len() + right.len())?;
            text.push_str(&right);
            Ok(Value::from(text))
        }
        "+" => plus(state, left, right),
        "[" => {
            sandbox::look_at_lookup(left, right)?;
            left.get_item(right)
        }
        _ => times(state, left, right),
    }
}

fn contains(state: &State, needle: &Value, container: &Value) -> Result<Value, Error> {
    admission::search(needle, container)?;
    match (container.as_str(), needle.as_str()) {
        (Some(text), Some(part)) => Ok(Value::from(text.contains(part))),
        (Some(text), None) => Ok(Value::from(text.contains(&python::to_text(needle)?))),
        _ => delegate(state, Instruction::In, needle, container),
    }
}

fn plus(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        sandbox::charge(left.len() + right.len())?;
        return Ok(Value::from([left, right].concat()));
    }
    charged(delegate(state, Instruction::Add, left, right)?)
}

fn times(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    let size = |value: &Value| match value.kind() {
        ValueKind::String => value.as_str().map(str::len),
        ValueKind::Seq | ValueKind::Iterable => {
            value.len().map(|len| len.saturating_mul(sandbox::VALUE))
        }
        _ => None,
    };
    for (sized, count) in [(left, right), (right, left)] {
        if let (Some(size), Some(count)) = (size(sized), count.as_i64()) {
            let count = usize::try_from(count).unwrap_or(0); // none for a negative number
            sandbox::allows(size.saturating_mul(count))?;
            sandbox::look(count)?; // empty ones take time too
            return charged(delegate(
                state,
                Instruction::Mul,
                sized,
                &Value::from(count),
            )?);
        }
    }
    charged(delegate(state, Instruction::Mul, left, right)?)
}

/// The engine's own operation on two values.
fn delegate(
    state: &State,
    operation: Instruction<'static>,
    left: &Value,
    right: &Value,
) -> Result<Value, Error> {
    let mut program = Instructions::new("", "");
    program.add(Instruction::LoadConst(left.clone()));
    program.add(Instruction::LoadConst(right.clone()));
    program.add(operation);
    let (mut text, blocks) = (String::new(), std::collections::BTreeMap::new());
    let mut out = make_string_output(&mut text);
    let (value, _) = Vm::new(state.env()).eval(
        &program,
        Value::from(()),
        &blocks,
        &mut out,
        AutoEscape::None,
    )?;
    Ok(value.unwrap_or_default())
}

/// Write a value as Python's `str` does.
pub fn write(out: &mut minijinja::Output, _state: &State, value: &Value) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        sandbox::charge(text.len())?;
        return out.write_str(text).map_err(Error::from);
    }
    let text = python::to_text(value)?;
    sandbox::charge(text.len())?;
    out.write_str(&text).map_err(Error::from)
}
