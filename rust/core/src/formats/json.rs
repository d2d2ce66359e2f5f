//! JSON texts: the rows of a block, one object as ordered raw fields, texts without a copy where they need none.

use std::borrow::Cow;
use std::fmt;

use memchr::{memchr, memchr_iter, memchr2_iter};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::raw::{Members, Raw, members};
use super::repeats::{repeated, twice};
use crate::reject::{Reject, shorten};

/// What helps against bytes that are not UTF-8.
pub const ICONV: &str =
    "convert the file to UTF-8, for example from Latin-1: iconv -f latin1 -t utf-8 OLD > NEW";
/// Fields of a row: as many as columns of a table.
pub const MOST_FIELDS: usize = 10_000;
/// Deeper values are refused: every reader of them further on is recursive.
const MAX_DEPTH: usize = 64;

/// The rows of a block: its lines that are not blank, each with its index among the block's lines.
pub fn lines(data: &[u8]) -> Vec<(&[u8], u64)> {
    let mut rows = Vec::new();
    let mut start = 0;
    let ends = memchr_iter(b'\n', data).chain((!data.ends_with(b"\n")).then_some(data.len()));
    for (line, end) in (0..).zip(ends) {
        let row = &data[start..end];
        if !row.trim_ascii_start().is_empty() {
            rows.push((row, line));
        }
        start = end + 1;
    }
    rows
}

/// A JSON string, or a `not_a_string` or `lone_surrogate` reject.
pub fn text(raw: Raw<'_>, field: impl fmt::Display) -> Result<Cow<'_, str>, Reject> {
    let json = raw.get();
    let Some(inner) = json.strip_prefix('"').and_then(|s| s.strip_suffix('"')) else {
        return Err(Reject {
            reason: "not_a_string",
            field: field.to_string(),
            value: shorten(json),
            rule: format!("{field} must be text"),
            remedy: "write it as a JSON string",
        });
    };
    if memchr(b'\\', inner.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(inner));
    }
    if let Some(text) = unescaped(inner) {
        return Ok(Cow::Owned(text));
    }
    // What a raw value leaves unchecked is the pairing of surrogates.
    serde_json::from_str(json)
        .map(Cow::Owned)
        .map_err(|_| unsound("lone_surrogate", raw, field))
}

/// What the inside of a valid JSON string spells; none where an escape is half a surrogate pair.
fn unescaped(inner: &str) -> Option<String> {
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = memchr(b'\\', rest.as_bytes()) {
        text.push_str(&rest[..at]);
        let (c, length) = match rest.as_bytes().get(at + 1)? {
            b'n' => ('\n', 2),
            b't' => ('\t', 2),
            b'r' => ('\r', 2),
            b'b' => ('\u{8}', 2),
            b'f' => ('\u{c}', 2),
            b'u' => {
                let code = u32::from_str_radix(rest.get(at + 2..at + 6)?, 16).ok()?;
                (char::from_u32(code)?, 6)
            }
            &plain => (char::from(plain), 2),
        };
        text.push(c);
        rest = &rest[at + length..];
    }
    text.push_str(rest);
    Some(text)
}

/// Check what raw JSON leaves unchecked: surrogates must be pairs, values not too deep.
pub fn sound(raw: Raw, field: impl fmt::Display) -> Result<(), Reject> {
    let (bytes, mut at, mut depth) = (raw.get().as_bytes(), 0, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let start = at;
                at += 1;
                while bytes.get(at).is_some_and(|&byte| byte != b'"') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                let string = &raw.get()[start..=at.min(bytes.len() - 1)];
                if string.contains("\\u") && serde_json::from_str::<String>(string).is_err() {
                    return Err(unsound("lone_surrogate", raw, field));
                }
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(unsound("too_deep", raw, field));
        }
        at += 1;
    }
    Ok(())
}

/// Whether lists and objects stand in each other over more than `most` levels.
pub fn is_deeper(json: &str, most: usize) -> bool {
    let bytes = json.as_bytes();
    if memchr2_iter(b'[', b'{', bytes).count() <= most {
        return false;
    }
    let (mut at, mut depth, mut in_string) = (0, 0_usize, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > most {
            return true;
        }
        at += 1;
    }
    false
}

fn unsound(reason: &'static str, raw: Raw, field: impl fmt::Display) -> Reject {
    let (rule, remedy) = if reason == "too_deep" {
        let rule = format!("{field} must not be nested deeper than {MAX_DEPTH} levels");
        (rule, "flatten the value, or write it as text")
    } else {
        let rule = format!(
            "{field} must be valid Unicode; half a surrogate pair (an escape \\ud800 to \\udfff) stands in it"
        );
        (
            rule,
            "replace the escape by the whole character or by \\ufffd",
        )
    };
    Reject {
        reason,
        field: field.to_string(),
        value: shorten(raw.get()),
        rule,
        remedy,
    }
}

/// JSON text without object members that are null: in typed rows an absent member is null.
pub fn without_nulls(json: &str) -> Cow<'_, str> {
    if !json.contains("null") {
        return Cow::Borrowed(json);
    }
    match serde_json::from_str::<Value>(json) {
        Ok(mut value) => {
            drop_nulls(&mut value);
            Cow::Owned(value.to_string())
        }
        Err(_) => Cow::Borrowed(json),
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// One JSON object: its fields in order, values as raw text.
pub struct Fields<'a>(pub Members<'a>);

impl<'a> Fields<'a> {
    /// The row's object, or a `broken_json` reject with the column, or a `repeated_field` reject.
    pub fn of_row(row: &'a [u8]) -> Result<Self, Reject> {
        let broken = |value: String, rule: String, remedy| Reject {
            reason: "broken_json",
            field: String::new(),
            value,
            rule,
            remedy,
        };
        let text = simdutf8::compat::from_utf8(row).map_err(|error| {
            let at = error.valid_up_to();
            let rule = format!(
                "a row must be UTF-8; the byte at column {} (0x{:02x}) is not",
                at + 1,
                row[at]
            );
            broken(shorten(&String::from_utf8_lossy(row)), rule, ICONV)
        })?;
        let fields = Self::parse(text).map_err(|error| {
            broken(
                shorten(text),
                format!("a row must be one JSON object; {}", describe(&error, text)),
                "mend the line, or drop it",
            )
        })?;
        if fields.0.len() > MOST_FIELDS {
            let rule = format!("a row must have at most {MOST_FIELDS} fields");
            return Err(broken(shorten(text), rule, "keep those you need"));
        }
        fields.check_once("")?;
        Ok(fields)
    }

    /// The fields of a JSON object.
    pub fn parse(json: &'a str) -> serde_json::Result<Self> {
        match members(json) {
            Some(found) => Ok(Self(found)),
            None => serde_json::from_str(json),
        }
    }

    /// A `repeated_field` reject where two fields have one name; `within` is where the object stands, with a dot.
    pub fn check_once(&self, within: impl fmt::Display) -> Result<(), Reject> {
        let Some([first, second]) = repeated(&self.0, |(name, _)| name) else {
            return Ok(());
        };
        Err(Reject {
            reason: "repeated_field",
            field: format!("{within}{}", second.0),
            value: shorten(second.1.get()),
            rule: twice("field", [&first.0, &second.0]),
            remedy: "leave one of them",
        })
    }

    /// The field's value; `None` where it is absent or null.
    pub fn get(&self, name: &str) -> Option<Raw<'a>> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, raw)| *raw).filter(|raw| raw.get() != "null")
    }

    /// The first of `names` that is there, with its value.
    pub fn any<'n>(&self, names: &[&'n str]) -> Option<(&'n str, Raw<'a>)> {
        names
            .iter()
            .find_map(|&name| self.get(name).map(|raw| (name, raw)))
    }

    pub fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| &**name).collect();
        names.join(", ")
    }

    /// The fields whose names are not in `known`, null ones left out, as a JSON object; `None` if there are none.
    pub fn others(&self, known: &[&str]) -> Result<Option<String>, Reject> {
        let mut text = String::new();
        for (name, raw) in &self.0 {
            if known.contains(&&**name) || raw.get() == "null" {
                continue;
            }
            sound(*raw, name)?;
            text.push(if text.is_empty() { '{' } else { ',' });
            text.push_str(&Value::from(&**name).to_string());
            text.push(':');
            text.push_str(raw.get());
        }
        Ok((!text.is_empty()).then(|| text + "}"))
    }
}

/// What is wrong with a JSON text, and in which column.
pub fn describe(error: &serde_json::Error, json: &str) -> String {
    let at = json.as_bytes().get(error.column().saturating_sub(1)..);
    for constant in ["NaN", "Infinity"] {
        if at.is_some_and(|rest| rest.starts_with(constant.as_bytes())) {
            return format!(
                "{constant} at column {} is no JSON; write null",
                error.column()
            );
        }
    }
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("{what} at column {}", error.column())
}

/// A key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Cow<'de, str>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(key))
            }

            fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(key.to_owned()))
            }
        }
        deserializer.deserialize_str(Text).map(Self)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some((Key(key), raw)) = map.next_entry::<_, &RawValue>()? {
                    fields.push((key, Raw::of(raw)));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Ordered).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Raw<'_> {
        Raw::parse(json).expect("a value")
    }

    #[test]
    fn blank_lines_are_no_rows_and_lines_are_counted() {
        assert_eq!(
            lines(b"{}\n\n  \r\nx\n"),
            vec![(&b"{}"[..], 0), (&b"x"[..], 3)]
        );
    }

    #[test]
    fn texts_are_borrowed_where_nothing_is_escaped() {
        assert!(matches!(text(raw("\"é\""), "f"), Ok(Cow::Borrowed("é"))));
        assert_eq!(
            text(raw(r#""a\nb\ud83d\ude00""#), "f").expect("text"),
            "a\nb😀"
        );
        for (json, reason) in [(r#""\ud800""#, "lone_surrogate"), ("7", "not_a_string")] {
            assert_eq!(text(raw(json), "f").expect_err("a reject").reason, reason);
        }
    }

    #[test]
    fn texts_are_those_of_serde_json() {
        for json in [
            r#""""#,
            r#""\\""#,
            r#""a\"b\/c\\d\b\f\n\r\te""#,
            r#""\u00e9\u0000é\u20AC\ud83d\ude00""#,
            r#""\n\n\\u0041""#,
        ] {
            let known: String = serde_json::from_str(json).expect("a string");
            assert_eq!(text(raw(json), "f").expect("text"), known);
        }
    }

    #[test]
    fn values_must_be_sound() {
        assert!(sound(raw(r#"{"a": ["\\ud800", "\ud83d\ude00", "]["]}"#), "f").is_ok());
        let reject = sound(raw(r#"{"a": "\udc00"}"#), "f").expect_err("a reject");
        assert_eq!(reject.reason, "lone_surrogate");
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let reject = sound(raw(&deep), "f").expect_err("a reject");
        assert_eq!(reject.reason, "too_deep");
    }

    #[test]
    fn nulls_of_typed_rows_are_absent_members() {
        let json = r#"[{"a":null,"b":{"c":null,"d":[null,1.0]}}]"#;
        assert_eq!(without_nulls(json), r#"[{"b":{"d":[null,1.0]}}]"#);
    }

    #[test]
    fn others_keep_order_and_text() {
        let fields = Fields::of_row(br#"{"role": "x", "a\"": [1, 2], "n": null, "b": 3.10}"#)
            .expect("a value");
        assert_eq!(
            fields.others(&["role"]).expect("sound").expect("a value"),
            r#"{"a\"":[1, 2],"b":3.10}"#
        );
        assert_eq!(fields.others(&["role", "b", "a\""]).expect("sound"), None);
    }

    #[test]
    fn rows_of_too_many_fields_are_bad() {
        let row = |fields: usize| {
            format!(
                "{{{}}}",
                (0..fields)
                    .map(|at| format!("\"{at}\":1"))
                    .collect::<Vec<_>>()
                    .join(",")
            )
        };
        assert!(Fields::of_row(row(MOST_FIELDS).as_bytes()).is_ok());
        let reject = Fields::of_row(row(MOST_FIELDS + 1).as_bytes()).err();
        let reject = reject.expect("a reject");
        assert_eq!(reject.rule, "a row must have at most 10000 fields");
    }

    #[test]
    fn a_row_has_each_field_once() {
        let reject = Fields::of_row(br#"{"a": 1, "b": 2, "a": 1}"#).err();
        assert_eq!(reject.expect("a reject").reason, "repeated_field");
        let reject = |json: &str| {
            let fields = Fields::parse(json).expect("an object");
            fields.check_once("chosen[0].").err()
        };
        let found = reject(r#"{"a": 1, "b": 2, "a": 3}"#).expect("a reject");
        assert_eq!((&*found.field, &*found.value), ("chosen[0].a", "3"));
        assert_eq!(found.rule, "field 'a' is there more than once");
        let found = reject(r#"{"a": 1, "\ufeffa ": 3}"#).expect("a reject");
        assert_eq!(
            found.rule,
            "fields 'a' and '\u{feff}a ' differ in nothing but space"
        );
        assert_eq!(reject(r#"{"a": 1, "aa": {"a": 2}}"#), None);
    }

    #[test]
    fn broken_rows_name_the_column() {
        let reject = Fields::of_row(br#"{"a": }"#).err().expect("a reject");
        assert_eq!(
            reject.rule,
            "a row must be one JSON object; expected value at column 7"
        );
        for (row, rule) in [
            (r#"{"a": NaN}"#, "NaN at column 7 is no JSON; write null"),
            (
                r#"{"a": -Infinity}"#,
                "Infinity at column 8 is no JSON; write null",
            ),
        ] {
            let reject = Fields::of_row(row.as_bytes()).err().expect("a reject");
            assert!(reject.rule.ends_with(rule), "{}", reject.rule);
        }
        let reject = Fields::of_row(b"[1]").err().expect("a reject");
        assert!(
            reject.rule.contains("expected a JSON object"),
            "{}",
            reject.rule
        );
        let reject = Fields::of_row(b"{\"a\": \"\xff\"}")
            .err()
            .expect("a reject");
        assert!(
            reject.rule.ends_with("column 8 (0xff) is not"),
            "{}",
            reject.rule
        );
        assert_eq!(reject.remedy, ICONV);
    }
}
