//! Splitting texts as Python does.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

use crate::template::sandbox;
use crate::template::strip::is_space;

/// `str.split` and `str.rsplit`.
pub fn split(
    text: &str,
    separator: Option<&str>,
    most: Option<usize>,
    right: bool,
) -> Result<Value, Error> {
    let list = |parts: Vec<&str>| parts.into_iter().map(Value::from).collect::<Value>();
    let Some(separator) = separator else {
        return Ok(list(split_spaces(text, most, right)));
    };
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    sandbox::allows(
        text.matches(separator)
            .count()
            .saturating_mul(sandbox::VALUE),
    )?;
    let count = most.map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<&str> = if right {
        text.rsplitn(count, separator).collect()
    } else {
        text.splitn(count, separator).collect()
    };
    if right {
        parts.reverse();
    }
    Ok(list(parts))
}

fn split_spaces(text: &str, most: Option<usize>, right: bool) -> Vec<&str> {
    let most = most.unwrap_or(usize::MAX);
    let (mut rest, mut parts) = (text, Vec::new());
    loop {
        rest = if right {
            rest.trim_end_matches(is_space)
        } else {
            rest.trim_start_matches(is_space)
        };
        if rest.is_empty() {
            break;
        }
        let at = if right {
            rest.rfind(is_space)
        } else {
            rest.find(is_space)
        };
        let (Some(at), true) = (at, parts.len() < most) else {
            parts.push(rest);
            break;
        };
        if right {
            let after = at + rest[at..].chars().next().map_or(0, char::len_utf8);
            parts.push(&rest[after..]);
        } else {
            parts.push(&rest[..at]);
        }
        rest = if right { &rest[..at] } else { &rest[at..] };
    }
    if right {
        parts.reverse();
    }
    parts
}

/// `str.splitlines`.
pub fn split_lines(text: &str, keep: bool) -> Value {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut rest, mut lines) = (text, Vec::new());
    while !rest.is_empty() {
        let Some(at) = rest.find(ends) else {
            lines.push(Value::from(rest));
            break;
        };
        let width = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(Value::from(&rest[..if keep { at + width } else { at }]));
        rest = &rest[at + width..];
    }
    Value::from(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_are_pythons() {
        assert_eq!(split_spaces(" a\u{1f}b c ", Some(1), false), ["a", "b c "]);
        assert_eq!(split_spaces(" a b c ", Some(1), true), [" a b", "c"]);
    }
}
