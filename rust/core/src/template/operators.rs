//! The operations of a rewritten template: Jinja's own, within the sandbox's bounds, and followed while a shape is learned.

use std::collections::BTreeSet;

use minijinja::machinery::{Instruction, Instructions, Vm, make_string_output};
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};

use super::trace::{self, Symbol};
use super::{python, sandbox};

/// Add a function for each of the names that a program calls.
pub fn install(environment: &mut Environment<'static>, names: &BTreeSet<&'static str>) {
    for &name in names {
        let (sign, rest) = name.split_at(1);
        match (sign, rest) {
            ("|", filter) => add(environment, name, move |state, args| {
                apply_filter(state, filter, args)
            }),
            ("?", test) => add(environment, name, move |state, args| {
                perform_test(state, test, args)
            }),
            (".", method) => add(environment, name, move |state, args| {
                call_method(state, method, args)
            }),
            ("$", _) => add(environment, name, |_, args| made(args[0].clone())),
            _ => add(environment, name, move |state, args| {
                let [left, right] = args else {
                    return Err(Error::from(ErrorKind::MissingArgument));
                };
                operate(state, name, left, right)
            }),
        }
    }
}

fn add(
    environment: &mut Environment<'static>,
    name: &'static str,
    call: impl Fn(&State, &[Value]) -> Result<Value, Error> + Send + Sync + 'static,
) {
    environment.add_function(name, move |state: &State, args: Rest<Value>| {
        call(state, &args)
    });
}

/// A value that an operation made: charged, and with the places of contents found again in a captured text.
fn made(value: Value) -> Result<Value, Error> {
    sandbox::charge_value(&value)?;
    Ok(trace::recover(value))
}

fn operate(state: &State, name: &str, left: &Value, right: &Value) -> Result<Value, Error> {
    if trace::active() && (trace::holds(left) || trace::holds(right)) {
        return trace::operate(state, name, left, right);
    }
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

pub fn contains(state: &State, needle: &Value, container: &Value) -> Result<Value, Error> {
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
    made(delegate(state, Instruction::Add, left, right)?)
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
    made(delegate(state, Instruction::Mul, left, right)?)
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

fn apply_filter(state: &State, name: &str, args: &[Value]) -> Result<Value, Error> {
    if trace::active()
        && let Some(answer) = trace::filter(state, name, args)?
    {
        return Ok(answer);
    }
    python::check_growth(name, args)?;
    made(state.apply_filter(name, args)?)
}

fn perform_test(state: &State, name: &str, args: &[Value]) -> Result<Value, Error> {
    if trace::active()
        && let Some(answer) = trace::test(state, name, args)?
    {
        return Ok(Value::from(answer));
    }
    state.perform_test(name, args).map(Value::from)
}

fn call_method(state: &State, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some((receiver, rest)) = args.split_first() else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    if trace::active()
        && let Some(answer) = trace::method(receiver, name, rest)?
    {
        return Ok(answer);
    }
    python::check_growth(name, args)?;
    made(receiver.call_method(state, name, rest)?)
}

/// Write a value as Python's `str` does.
pub fn format(out: &mut minijinja::Output, _state: &State, value: &Value) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        sandbox::charge(text.len())?;
        return out.write_str(text).map_err(Error::from);
    }
    if let Some(symbol) = value.downcast_object_ref::<Symbol>() {
        return out.write_str(&trace::marked(symbol)?).map_err(Error::from);
    }
    let text = python::to_text(value)?;
    sandbox::charge(text.len())?;
    out.write_str(&text).map_err(Error::from)
}
