//! What filters, methods and searches look at and may make, charged before they run.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::template::sandbox;

/// Look at what a filter looks at.
pub fn filter(name: &str, args: &[Value]) -> Result<(), Error> {
    let Some((first, rest)) = args.split_first() else {
        return Ok(());
    };
    match name {
        "length" | "count" | "first" | "default" | "d" | "safe" | "bool" | "attr" | "abs" => {
            sandbox::look_at_text(first)
        }
        "list" | "reverse" | "batch" | "slice" | "items" | "chain" | "zip" | "sum" | "last"
        | "map" | "select" | "reject" | "selectattr" | "rejectattr" => {
            let mut items = 0usize;
            for arg in args {
                items = items.saturating_add(sandbox::look_at_items(arg)?);
            }
            sandbox::allows(items.saturating_mul(sandbox::VALUE))
        }
        "min" | "max" | "sort" | "unique" | "groupby" | "dictsort" => {
            let size = sandbox::measure(first)?;
            let items = sandbox::look_at_items(first)?;
            sandbox::allows(items.saturating_mul(2 * sandbox::VALUE))?;
            let mut keys = 0usize;
            for arg in rest {
                keys = keys.saturating_add(sandbox::measure(arg)?);
            }
            let rounds = items.max(1).ilog2() as usize + 1;
            sandbox::look(
                size.saturating_add(items.saturating_mul(keys))
                    .saturating_mul(rounds),
            )
        }
        _ => {
            let mut size = 0usize;
            for arg in args {
                size = size.saturating_add(sandbox::measure(arg)?);
            }
            sandbox::allows(size)
        }
    }
}

/// Look at what a method looks at.
pub fn method(name: &str, receiver: &Value, args: &[Value]) -> Result<(), Error> {
    sandbox::check_growth(name, args)?;
    if name == "cycle" && sandbox::is_loop(receiver) && args.len() == 1 {
        return Err(Error::from(ErrorKind::MissingArgument));
    }
    let mut size = 0usize;
    for arg in &args[1..] {
        size = size.saturating_add(sandbox::measure(arg)?);
    }
    if receiver.kind() == ValueKind::Map {
        if matches!(name, "items" | "keys" | "values") {
            sandbox::look_at_items(receiver)?;
        }
        return Ok(());
    }
    let own = sandbox::measure(receiver)?;
    if receiver.as_str().is_none() {
        let items = receiver.len().unwrap_or(0);
        sandbox::look(items.saturating_mul(size))?;
    }
    sandbox::allows(size.saturating_add(own))
}

/// Look at what is searched for a value.
pub fn search(needle: &Value, container: &Value) -> Result<(), Error> {
    match (container.as_str(), container.kind()) {
        (Some(text), _) => sandbox::look(text.len()),
        (None, ValueKind::Map) => sandbox::look_at_lookup(container, needle),
        (None, ValueKind::Seq | ValueKind::Iterable) => {
            let items = sandbox::look_at_items(container)?;
            if sandbox::is_container(needle) {
                sandbox::measure(container)?;
            }
            sandbox::look(items.saturating_mul(sandbox::measure(needle)?))
        }
        _ => Ok(()),
    }
}
