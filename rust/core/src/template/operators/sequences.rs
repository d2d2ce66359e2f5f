//! Filters that call a filter or a test on each element: their calls are within the sandbox's bounds too.

use minijinja::value::{Kwargs, Value, from_args};
use minijinja::{Error, ErrorKind, State};

use super::{filter, test};
use crate::template::sandbox;

/// `map(attribute=…, default=…)`, or `map` with a filter's name and its arguments.
pub fn map(state: &State, args: &[Value]) -> Result<Value, Error> {
    let (list, all) = args.split_first().ok_or(ErrorKind::MissingArgument)?;
    let (args, options): (&[Value], Kwargs) = from_args(all)?;
    let attribute: Option<Value> = options.get("attribute")?;
    let default: Option<Value> = options.get("default")?;
    let mut mapped = Vec::new();
    if let Some(attribute) = attribute {
        options.assert_all_used()?;
        if !args.is_empty() {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        for item in list.try_iter()? {
            let found = attribute_of(&item, &attribute);
            mapped.push(match (found, &default) {
                (Ok(found), Some(default)) if found.is_undefined() => default.clone(),
                (Ok(found), _) => found,
                (Err(error), Some(_)) if error.kind() == ErrorKind::OutOfFuel => return Err(error),
                (Err(_), Some(default)) => default.clone(),
                (Err(error), None) => return Err(error),
            });
        }
        return Ok(Value::from(mapped));
    }
    let name = args.first().ok_or_else(|| {
        let rule = "map needs a filter's name or an attribute";
        Error::new(ErrorKind::InvalidOperation, rule)
    })?;
    let name = text(name)?;
    let mut call = vec![Value::UNDEFINED];
    call.extend_from_slice(&all[1..]);
    sandbox::enter()?;
    for item in list.try_iter()? {
        sandbox::call()?;
        call[0] = item;
        mapped.push(filter(state, name, &call)?);
    }
    sandbox::leave();
    Ok(Value::from(mapped))
}

/// `select`, `reject`, `selectattr`, `rejectattr`: elements (their attribute) that pass a test, or that are true.
pub fn select(state: &State, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (list, mut args) = args.split_first().ok_or(ErrorKind::MissingArgument)?;
    let mut attribute = None;
    if name.ends_with("attr") {
        let (first, rest) = args.split_first().ok_or(ErrorKind::MissingArgument)?;
        (attribute, args) = (Some(first), rest);
    }
    let wanted = name.starts_with("select");
    let (question, rest) = match args.split_first() {
        Some((question, rest)) => (Some(text(question)?), rest),
        None => (None, args),
    };
    let mut call = vec![Value::UNDEFINED];
    call.extend_from_slice(rest);
    let mut selected = Vec::new();
    for item in list.try_iter()? {
        sandbox::call()?;
        call[0] = match attribute {
            Some(attribute) => attribute_of(&item, attribute)?,
            None => item.clone(),
        };
        let passes = match question {
            Some(question) => test(state, question, &call)?,
            None => call[0].is_true(),
        };
        if passes == wanted {
            selected.push(item);
        }
    }
    Ok(Value::from(selected))
}

/// An attribute by its name, a path of names (`a.b`), or an index.
fn attribute_of(item: &Value, attribute: &Value) -> Result<Value, Error> {
    let Some(path) = attribute.as_str() else {
        return item.get_item(attribute);
    };
    sandbox::look(path.len())?;
    let mut found = item.clone();
    for part in path.split('.') {
        found = match part.parse::<usize>() {
            Ok(index) => found.get_item(&Value::from(index))?,
            Err(_) => found.get_attr(part)?,
        };
    }
    Ok(found)
}

fn text(name: &Value) -> Result<&str, Error> {
    name.as_str().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            "a filter or test is named by a text",
        )
    })
}
