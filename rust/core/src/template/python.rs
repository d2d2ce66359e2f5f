//! What Python's texts can do and Rust's do otherwise: spaces, splitting, `str()`.

mod splitting;

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use unicode_categories::UnicodeCategories;

use super::sandbox;
use super::strip::{Strip, is_space, strip};
use splitting::{split, split_lines};

/// The filter `trim`.
pub fn trim(text: &str, characters: Option<&str>) -> String {
    let taken = characters.map_or(Strip::Spaces, |set| Strip::Characters(set.into()));
    strip(text, &taken, &taken).to_string()
}

/// The filter `round`: Python's, which rounds halves to even.
#[allow(clippy::needless_pass_by_value)] // a filter owns its arguments
pub fn round(value: Value, digits: Option<i32>, method: Option<&str>) -> Result<Value, Error> {
    let (digits, method) = (digits.unwrap_or(0), method.unwrap_or("common"));
    if value.is_integer() && digits >= 0 && method == "common" {
        return Ok(value);
    }
    let (x, scale) = (f64::try_from(value)?, 10f64.powi(digits));
    let rounded = match method {
        "ceil" => (x * scale).ceil() / scale,
        "floor" => (x * scale).floor() / scale,
        "common" if (1..300).contains(&digits) => {
            let places = digits as usize;
            format!("{x:.places$}").parse().unwrap_or(x) // exact, unlike a product
        }
        "common" => (x * scale).round_ties_even() / scale,
        _ => {
            let rule = "round: method must be common, ceil or floor";
            return Err(Error::new(ErrorKind::InvalidOperation, rule));
        }
    };
    Ok(Value::from(rounded))
}

/// Methods of texts; those of the engine answer where this does not.
pub fn call_method(
    state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(answer) = text_method(text, method, args)?
    {
        return Ok(answer);
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn text_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (set,): (Option<&str>,) = from_args(args)?;
            let taken = set.map_or(Strip::Spaces, |set| Strip::Characters(set.into()));
            let none = Strip::Nothing;
            let start = if method == "rstrip" { &none } else { &taken };
            let end = if method == "lstrip" { &none } else { &taken };
            Value::from(strip(text, start, end))
        }
        "split" | "rsplit" => {
            let (separator, most, options): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = match separator {
                None => options.get("sep")?,
                some => some,
            };
            let most = most
                .or(options.get("maxsplit")?)
                .and_then(|n| usize::try_from(n).ok());
            options.assert_all_used()?;
            split(text, separator, most, method == "rsplit")?
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            split_lines(text, keep.unwrap_or(false))
        }
        "find" | "rfind" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if method == "find" {
                text.find(part)
            } else {
                text.rfind(part)
            };
            at.map_or(Value::from(-1), |byte| {
                Value::from(text[..byte].chars().count())
            })
        }
        "removeprefix" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(part).unwrap_or(text))
        }
        "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(part).unwrap_or(text))
        }
        "isspace" => Value::from(!text.is_empty() && text.chars().all(is_space)),
        "isalpha" => {
            Value::from(!text.is_empty() && text.chars().all(UnicodeCategories::is_letter))
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            Value::from(pad(text, width, fill, method)?)
        }
        "count" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(text.matches(part).count())
        }
        "isascii" | "upper" | "lower" | "replace" | "capitalize" | "startswith" | "endswith"
        | "join" | "format" | "title" => return Ok(None),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)), // the engine's differ from Python's
    }))
}

/// The text in as many characters as `width`, as `method` pads it.
pub fn pad(text: &str, width: i64, fill: Option<&str>, method: &str) -> Result<String, Error> {
    let zeros = method == "zfill";
    let mut chars = fill.unwrap_or(if zeros { "0" } else { " " }).chars();
    let (Some(fill), None) = (chars.next(), chars.next()) else {
        let rule = format!("{method}: the fill must be one character");
        return Err(Error::new(ErrorKind::InvalidOperation, rule));
    };
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    sandbox::allows(missing.saturating_mul(fill.len_utf8()))?;
    let left = match method {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let side = |count: usize| String::from(fill).repeat(count);
    let signed = zeros && text.starts_with(['+', '-']);
    let (sign, rest) = text.split_at(usize::from(signed));
    Ok([sign, &side(left), rest, &side(missing - left)].concat())
}

/// `str()` of a value; an undefined one is empty.
pub fn to_text(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_string());
    }
    let mut out = String::new();
    if !value.is_undefined() {
        write_repr(&mut out, value, 0)?;
    }
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > sandbox::DEPTH {
        return Err(sandbox::too_deep());
    }
    sandbox::allows(out.len())?;
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value, ["nan", "inf"])),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A number as Python writes it, with its words for no number and for infinity.
pub fn number(value: &Value, [nan, infinity]: [&str; 2]) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(x) if x.is_nan() => nan.to_string(),
        Ok(x) if x.is_infinite() => format!("{}{infinity}", if x < 0.0 { "-" } else { "" }),
        Ok(x) => python_float(x),
        Err(_) => value.to_string(),
    }
}

/// `repr` of a finite float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn python_float(x: f64) -> String {
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

fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    let plain = |c: char| matches!(c, ' '..='~') && c != '\\' && c != quote;
    let mut rest = text;
    loop {
        let end = rest.find(|c| !plain(c)).unwrap_or(rest.len());
        out.push_str(&rest[..end]);
        let Some(c) = rest[end..].chars().next() else {
            break;
        };
        rest = &rest[end + c.len_utf8()..];
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c != ' ' && (c.is_other() || c.is_separator()) => {
                let code = c as u32;
                // writing to a String cannot fail
                let _ = match code {
                    0..0x100 => write!(out, "\\x{code:02x}"),
                    0x100..0x1_0000 => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
            c => out.push(c),
        }
    }
    out.push(quote);
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
            (-1.5e300, "-1.5e+300"),
        ];
        for (x, text) in cases {
            assert_eq!(python_float(x), text);
        }
    }

    #[test]
    fn padding_is_pythons() {
        let pad = |text, width, method| pad(text, width, None, method).expect("fits");
        assert_eq!(
            [pad("ab", 5, "center"), pad("a", 4, "center")],
            ["  ab ", " a  "]
        );
        assert_eq!(
            [pad("ab", 4, "ljust"), pad("ab", 4, "rjust")],
            ["ab  ", "  ab"]
        );
        assert_eq!(
            [pad("-1", 4, "zfill"), pad("abc", -1, "zfill")],
            ["-001", "abc"]
        );
    }

    #[test]
    fn spaces_are_pythons() {
        assert_eq!(trim("\u{1c} a\u{85}\u{3000}", None), "a");
    }
}
