//! What Python gives to templates and Jinja in Rust does not: `json.dumps`, `str()`, dates.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};

/// Add `tojson`, `raise_exception`, `strftime_now`, and print values as Python does.
pub fn install(environment: &mut Environment<'_>, now: i64) {
    environment.add_filter("tojson", to_json);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> { Err(invalid(message)) },
    );
    environment.add_function("strftime_now", move |format: String| strftime(&format, now));
    environment.add_test("iterable", |value: &Value| {
        !matches!(
            value.kind(),
            ValueKind::None | ValueKind::Bool | ValueKind::Number
        )
    });
    environment.set_formatter(format_value);
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn format_value(out: &mut Output, state: &State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            out.write_str(&python_repr(value)?).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// How a JSON text is laid out; the names are those of `json.dumps`.
struct Layout {
    ensure_ascii: bool,
    indent: Option<usize>,
    item: String,
    key: String,
    sort_keys: bool,
}

#[allow(clippy::needless_pass_by_value)] // a filter owns its arguments
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators must be a pair of strings")),
        None => (
            if indent.is_some() { "," } else { ", " }.to_string(),
            ": ".to_string(),
        ),
    };
    let layout = Layout {
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        indent,
        item,
        key,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(&mut out, value, &layout, 1)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, layout: &Layout, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
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
                json_string(out, &key.to_string(), layout.ensure_ascii);
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
        if let (Some(width), false) = (layout.indent, items.is_empty()) {
            out.push('\n');
            out.push_str(&" ".repeat(width * depth));
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
    for c in text.chars() {
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

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), python_float)
}

/// `repr` of a Python float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn python_float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "NaN".into()
        } else {
            format!("{}Infinity", if x < 0.0 { "-" } else { "" })
        };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') {
        plain
    } else {
        plain + ".0"
    }
}

/// `repr` of a Python value, without quotes at the top level because strings never come here.
fn python_repr(value: &Value) -> Result<String, Error> {
    let join = |items: Result<Vec<String>, Error>| items.map(|items| items.join(", "));
    Ok(match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number => number(value),
        ValueKind::String => python_quote(value.as_str().unwrap_or_default()),
        ValueKind::Seq => format!(
            "[{}]",
            join(value.try_iter()?.map(|item| python_repr(&item)).collect())?
        ),
        ValueKind::Map => {
            let items = value.try_iter()?.map(|key| {
                let item = value.get_item(&key)?;
                Ok(format!("{}: {}", python_repr(&key)?, python_repr(&item)?))
            });
            format!("{{{}}}", join(items.collect())?)
        }
        _ => value.to_string(),
    })
}

fn python_quote(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c != ' ' && (c.is_control() || c.is_whitespace()) => {
                let code = c as u32;
                // writing to a String cannot fail
                let _ = if code < 0x100 {
                    write!(out, "\\x{code:02x}")
                } else {
                    write!(out, "\\u{code:04x}")
                };
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// `strftime` for the fields that templates use; `now` in seconds since 1970, local time.
fn strftime(format: &str, now: i64) -> Result<String, Error> {
    let (days, second) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let month_name = MONTHS[(month - 1) as usize];
    let weekday = WEEKDAYS[(days + 4).rem_euclid(7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut field = chars.next().unwrap_or('%');
        let bare = field == '-';
        if bare {
            field = chars.next().unwrap_or('-');
        }
        let pad = |value: i64| {
            if bare {
                value.to_string()
            } else {
                format!("{value:02}")
            }
        };
        out.push_str(&match field {
            'Y' => year.to_string(),
            'y' => pad(year.rem_euclid(100)),
            'm' => pad(month),
            'd' => pad(day),
            'H' => pad(second / 3600),
            'I' => pad((second / 3600 + 11) % 12 + 1),
            'M' => pad(second / 60 % 60),
            'S' => pad(second % 60),
            'p' => if second < 43_200 { "AM" } else { "PM" }.into(),
            'B' => month_name.into(),
            'b' => month_name[..3].into(),
            'A' => weekday.into(),
            'a' => weekday[..3].into(),
            '%' => "%".into(),
            other => {
                return Err(invalid(format!(
                    "strftime_now: field %{other} is not supported"
                )));
            }
        });
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01 (proleptic Gregorian).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468; // from 0000-03-01, so that the leap day ends its year
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (
        year_of_era + era * 400 + i64::from(month <= 2),
        month,
        day_of_year - (153 * shifted_month + 2) / 5 + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        let cases = [
            (0.0, "0.0"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
        ];
        for (x, text) in cases {
            assert_eq!(python_float(x), text);
        }
        assert_eq!(python_float(-1.5e300), "-1.5e+300");
    }

    #[test]
    fn dates() {
        assert_eq!(
            strftime("%A %d %B %Y %H:%M:%S", 1_709_251_199).expect("known"),
            "Thursday 29 February 2024 23:59:59"
        );
        assert_eq!(
            strftime("%-d %b %y %I%p", 0).expect("known"),
            "1 Jan 70 12AM"
        );
        assert!(strftime("%U", 0).is_err());
    }
}
