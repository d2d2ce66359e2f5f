//! What transformers adds to Jinja: `tojson` as `json.dumps`, `raise_exception`, `strftime_now`.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind};

use super::dates::strftime;
use super::{python, sandbox};

pub fn install(environment: &mut Environment<'_>, now: i64) {
    environment.add_filter("tojson", to_json);
    environment.add_filter("trim", |text: &Value, characters: Option<&str>| {
        python::to_text(text).map(|text| python::trim(&text, characters))
    });
    environment.add_filter("center", |text: &Value, width: Option<i64>| {
        python::pad(&python::to_text(text)?, width.unwrap_or(80), None, "center")
    });
    environment.add_filter("string", python::to_text);
    environment.add_filter("round", python::round);
    environment.add_function(
        "raise_exception",
        |message: &Value| -> Result<Value, Error> { Err(invalid(python::to_text(message)?)) },
    );
    environment.add_function("range", range);
    environment.add_test("divisibleby", |number: i64, other: i64| {
        number
            .checked_rem_euclid(other)
            .map(|rest| rest == 0)
            .ok_or_else(|| invalid("divisibleby: a number is divided by 0"))
    });
    environment.add_function("strftime_now", move |format: String| strftime(&format, now));
    environment.add_function("debug", || -> Result<Value, Error> {
        Err(Error::new(
            ErrorKind::UnknownFunction,
            "debug is not part of Jinja",
        ))
    });
    environment.add_test("iterable", |value: &Value| {
        !matches!(
            value.kind(),
            ValueKind::None | ValueKind::Bool | ValueKind::Number
        )
    });
    environment.set_unknown_method_callback(python::call_method);
}

/// Python's `range`, of as many numbers as Jinja's sandbox allows.
fn range(first: i64, second: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    const MOST: i128 = 100_000;
    let (start, end) = second.map_or((0, first), |second| (first, second));
    let (start, end): (i128, i128) = (start.into(), end.into());
    let step = i128::from(step.unwrap_or(1));
    if step == 0 {
        return Err(invalid("range: the step must not be 0"));
    }
    let span = if step > 0 { end - start } else { start - end };
    let count = (span.max(0) + step.abs() - 1) / step.abs();
    if count > MOST {
        return Err(Error::new(
            ErrorKind::OutOfFuel,
            format!("range: {count} numbers are more than {MOST}"),
        ));
    }
    Ok((0..count)
        .map(|index| Value::from((start + index * step) as i64))
        .collect::<Vec<_>>()
        .into())
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// How a JSON text is laid out; the names are those of `json.dumps`.
struct Layout {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Layout {
    fn parse(args: &[Value]) -> Result<Self, Error> {
        let (positional, options): (&[Value], Kwargs) = from_args(args)?;
        let option = |index: usize, name: &str| -> Result<Option<Value>, Error> {
            let named: Option<Value> = options.get(name)?;
            Ok(positional
                .get(index)
                .cloned()
                .or(named)
                .filter(|value| !value.is_none()))
        };
        let ensure_ascii = option(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
        let indent = match option(1, "indent")? {
            None => None,
            Some(value) if value.as_str().is_some() => value.as_str().map(String::from),
            Some(value) => {
                let width = usize::try_from(i64::try_from(value)?).unwrap_or(0);
                sandbox::allows(width.saturating_mul(sandbox::DEPTH))?;
                Some(" ".repeat(width))
            }
        };
        let (item, key) = match option(2, "separators")? {
            None => (
                if indent.is_some() { "," } else { ", " }.into(),
                ": ".into(),
            ),
            Some(pair) => match pair.try_iter()?.collect::<Vec<_>>().as_slice() {
                [item, key] => (python::to_text(item)?, python::to_text(key)?),
                _ => return Err(invalid("tojson: separators must be a pair of strings")),
            },
        };
        let sort_keys = option(3, "sort_keys")?.is_some_and(|value| value.is_true());
        options.assert_all_used()?;
        Ok(Self {
            ensure_ascii,
            indent,
            item,
            key,
            sort_keys,
        })
    }
}

#[allow(clippy::needless_pass_by_value)] // a filter owns its arguments
fn to_json(value: &Value, args: Rest<Value>) -> Result<String, Error> {
    let mut out = String::new();
    write_json(&mut out, value, &Layout::parse(&args)?, 1)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, layout: &Layout, depth: usize) -> Result<(), Error> {
    if depth > sandbox::DEPTH {
        return Err(sandbox::too_deep());
    }
    sandbox::allows(out.len())?;
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&python::number(value, ["NaN", "Infinity"])),
        ValueKind::String => {
            json_string(out, value.as_str().unwrap_or_default(), layout.ensure_ascii);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_items(out, ['[', ']'], &items, layout, depth, |out, item| {
                write_json(out, item, layout, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if layout.sort_keys {
                keys.sort();
            }
            write_items(out, ['{', '}'], &keys, layout, depth, |out, key| {
                let name = match key.kind() {
                    ValueKind::None => "null".to_string(),
                    ValueKind::Number => python::number(key, ["NaN", "Infinity"]),
                    _ => key.to_string(),
                };
                json_string(out, &name, layout.ensure_ascii);
                out.push_str(&layout.key);
                write_json(out, &value.get_item(key)?, layout, depth + 1)
            })?;
        }
        kind => {
            return Err(invalid(format!(
                "tojson: a value of kind {kind} has no JSON form"
            )));
        }
    }
    Ok(())
}

fn write_items(
    out: &mut String,
    [open, close]: [char; 2],
    items: &[Value],
    layout: &Layout,
    depth: usize,
    mut write: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |out: &mut String, depth: usize| {
        if let (Some(indent), false) = (&layout.indent, items.is_empty()) {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(&layout.item);
        }
        new_line(out, depth);
        write(out, item)?;
    }
    new_line(out, depth - 1);
    out.push(close);
    Ok(())
}

fn json_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    let plain = |c: char| matches!(c, ' '..='~') && c != '"' && c != '\\';
    let mut rest = text;
    loop {
        let end = rest.find(|c| !plain(c)).unwrap_or(rest.len());
        out.push_str(&rest[..end]);
        let Some(c) = rest[end..].chars().next() else {
            break;
        };
        rest = &rest[end + c.len_utf8()..];
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}"); // writing to a String cannot fail
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
