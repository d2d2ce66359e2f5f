//! Following contents through a rendering: each stands for itself as a `Symbol`, and what the template asks about it is
//! written down with the answer. Whatever else a template does to a content is refused, and nothing is learned.

mod operations;
mod record;
mod symbol;

use std::collections::BTreeSet;

use minijinja::value::{Rest, Value};
use minijinja::{Environment, Error, Output, State};

use super::content::{Guard, Piece, Slot};
use super::operators::{self, Operation};
use super::sandbox;
use super::strip::Strip;
use symbol::Symbol;

/// Follow `contents` through what `run` renders of them: the rendering, and the guards on which it depends. None where
/// that fails or a content cannot be followed.
///
/// The invariant: for any contents with which every guard holds, `run` renders these pieces. It holds because the
/// template is handed symbols alone, and each operation on a symbol moves it whole, puts a guard into the record, or
/// ends the learning; so nothing that `run` does can depend on a content in another way.
pub fn follow(
    contents: &[&str],
    run: impl FnOnce(&[Value]) -> Result<String, Error>,
) -> Option<(Vec<Piece>, Vec<Guard>)> {
    record::begin(contents);
    let whole = |message| {
        symbol::symbol(vec![Piece::Slot(Slot {
            message,
            start: Strip::Nothing,
            end: Strip::Nothing,
        })])
    };
    let symbols: Vec<Value> = (0..contents.len()).map(whole).collect();
    let text = run(&symbols);
    let pieces = text.ok().and_then(|text| symbol::parse_marks(&text));
    let guards = record::end()?;
    Some((pieces?, guards))
}

/// Make the operations that a program calls by these names, and its output, such that contents can be followed.
pub fn install(environment: &mut Environment<'static>, names: &BTreeSet<&'static str>) {
    for &name in names {
        let operation = Operation::named(name);
        environment.add_function(name, move |state: &State, args: Rest<Value>| {
            operate(state, operation, &args)
        });
    }
    environment.set_formatter(write);
}

fn operate(state: &State, operation: Operation, args: &[Value]) -> Result<Value, Error> {
    if !record::active() {
        return operators::operate(state, operation, args);
    }
    args.iter().try_for_each(look)?;
    match operations::answer(state, operation, args)? {
        Some(answer) => {
            if let Some(symbol) = answer.downcast_object_ref::<Symbol>() {
                sandbox::charge(symbol.size())?;
            }
            Ok(answer)
        }
        None => operators::operate(state, operation, args).map(symbol::recover),
    }
}

/// Look at all of a value and, where it is one, at the text that a symbol stands for.
fn look(value: &Value) -> Result<(), Error> {
    match value.downcast_object_ref::<Symbol>() {
        Some(symbol) => sandbox::look(symbol.size()),
        None if sandbox::is_container(value) => sandbox::measure(value).map(|_| ()),
        None => Ok(()),
    }
}

fn write(out: &mut Output, state: &State, value: &Value) -> Result<(), Error> {
    match value.downcast_object_ref::<Symbol>() {
        Some(symbol) => {
            sandbox::charge(symbol.size())?;
            Ok(out.write_str(&symbol::marked(symbol)?)?)
        }
        None => operators::write(out, state, value),
    }
}
