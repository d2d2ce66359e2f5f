//! The operations of a rewritten template: Jinja's own, within the sandbox's bounds.

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
    /// `$`: charges for a value that was made.
    Charge,
    Operator(&'static str),
}

impl Operation {
    pub fn named(name: &'static str) -> Self {
        match name.split_at(1) {
            ("|", filter) => Self::Filter(filter),
            ("?", test) => Self::Test(test),
            (".", method) => Self::Method(method),
            ("$", _) => Self::Charge,
            _ => Self::Operator(name),
        }
    }
}

/// What the operation makes of these values.
pub fn operate(state: &State, operation: Operation, args: &[Value]) -> Result<Value, Error> {
    match (operation, args) {
        (Operation::Filter(filter), _) => {
            sandbox::check_growth(filter, args)?;
            charged(state.apply_filter(filter, args)?)
        }
        (Operation::Test(test), _) => state.perform_test(test, args).map(Value::from),
        (Operation::Method(method), [receiver, rest @ ..]) => {
            sandbox::check_growth(method, args)?;
            charged(receiver.call_method(state, method, rest)?)
        }
        (Operation::Charge, [value]) => charged(value.clone()),
        (Operation::Operator(name), [left, right]) => operator(state, name, left, right),
        _ => Err(Error::from(ErrorKind::MissingArgument)),
    }
}

/// A value that an operation made.
fn charged(value: Value) -> Result<Value, Error> {
    sandbox::charge_value(&value)?;
    Ok(value)
}

fn operator(state: &State, name: &str, left: &Value, right: &Value) -> Result<Value, Error> {
    let flag = |truth: bool| Ok(Value::from(truth));
    match name {
        "==" => flag(left == right),
        "!=" => flag(left != right),
        "<" => flag(left < right),
        "<=" => flag(left <= right),
        ">" => flag(left > right),
        ">=" => flag(left >= right),
        "in" => contains(state, left, right),
        "~" => {
            let (mut text, right) = (python::to_text(left)?, python::to_text(right)?);
            sandbox::charge(text.len() + right.len())?;
            text.push_str(&right);
            Ok(Value::from(text))
        }
        "+" => plus(state, left, right),
        _ => times(state, left, right),
    }
}

fn contains(state: &State, needle: &Value, container: &Value) -> Result<Value, Error> {
    match (container.as_str(), needle.as_str()) {
        (Some(text), Some(part)) => Ok(Value::from(text.contains(part))),
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
        ValueKind::Seq | ValueKind::Iterable => value.len(),
        _ => None,
    };
    for (sized, count) in [(left, right), (right, left)] {
        if let (Some(size), Some(count)) = (size(sized), count.as_i64()) {
            sandbox::allows(size.saturating_mul(usize::try_from(count).unwrap_or(0)))?;
            if count < 0 {
                return delegate(state, Instruction::Mul, sized, &Value::from(0));
            }
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
