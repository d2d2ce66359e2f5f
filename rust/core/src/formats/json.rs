//! JSON texts: splitting a file into rows, and one object as ordered raw fields.

use std::fmt;

use memchr::memchr_iter;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Reject;

const SHOWN_CHARS: usize = 80;

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

/// `text` cut to a length that fits a message.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS - 1) {
        Some((end, last)) if end + last.len_utf8() < text.len() => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}

/// One JSON object: its fields in order, values as raw text. Of a repeated key the last counts.
pub struct Fields<'a>(pub Vec<(String, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// The row's object, or a `broken_json` reject with the column.
    pub fn of_row(row: &'a [u8]) -> std::result::Result<Self, Reject> {
        let broken = |value: String, rule: String| Reject {
            reason: "broken_json",
            field: String::new(),
            value,
            rule,
            remedy: "mend the line, or drop it",
        };
        let text = std::str::from_utf8(row).map_err(|error| {
            let rule = format!(
                "a row must be UTF-8; the byte at column {} is not",
                error.valid_up_to() + 1
            );
            broken(shorten(&String::from_utf8_lossy(row)), rule)
        })?;
        serde_json::from_str(text).map_err(|error| {
            broken(
                shorten(text),
                format!("a row must be one JSON object; {}", describe(&error)),
            )
        })
    }

    /// The field's value; `None` where it is absent or null.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        let found = self.0.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, raw)| *raw).filter(|raw| raw.get() != "null")
    }

    pub fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }

    /// The fields whose names are not in `known`, null ones left out, as a JSON object; `None` if there are none.
    pub fn others(&self, known: &[&str]) -> Option<String> {
        let mut text = String::new();
        for (index, (name, raw)) in self.0.iter().enumerate() {
            let repeated = self.0[index + 1..].iter().any(|(later, _)| later == name);
            if known.contains(&name.as_str()) || raw.get() == "null" || repeated {
                continue;
            }
            text.push(if text.is_empty() { '{' } else { ',' });
            text.push_str(&serde_json::Value::from(name.as_str()).to_string());
            text.push(':');
            text.push_str(raw.get());
        }
        (!text.is_empty()).then(|| text + "}")
    }
}

fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("{what} at column {}", error.column())
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(
                self,
                mut map: M,
            ) -> std::result::Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
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

    #[test]
    fn blank_lines_are_no_rows_and_lines_are_counted() {
        assert_eq!(
            lines(b"{}\n\n  \r\nx\n"),
            vec![(&b"{}"[..], 0), (&b"x"[..], 3)]
        );
    }

    #[test]
    fn others_keep_order_and_text() {
        let fields =
            Fields::of_row(br#"{"b": 1e2, "role": "x", "a\"": [1, 2], "n": null, "b": 3.10}"#)
                .expect("a value");
        assert_eq!(
            fields.others(&["role"]).expect("a value"),
            r#"{"a\"":[1, 2],"b":3.10}"#
        );
        assert_eq!(fields.others(&["role", "b", "a\""]), None);
    }

    #[test]
    fn broken_rows_name_the_column() {
        let reject = Fields::of_row(br#"{"a": }"#).err().expect("a reject");
        assert_eq!(
            reject.rule,
            "a row must be one JSON object; expected value at column 7"
        );
        let reject = Fields::of_row(b"[1]").err().expect("a reject");
        assert!(
            reject.rule.contains("expected a JSON object"),
            "{}",
            reject.rule
        );
        let reject = Fields::of_row(b"{\"a\": \"\xff\"}")
            .err()
            .expect("a reject");
        assert!(reject.rule.ends_with("column 8 is not"), "{}", reject.rule);
    }

    #[test]
    fn shortened_by_characters() {
        assert_eq!(shorten(&"é".repeat(80)), "é".repeat(80));
        assert_eq!(shorten(&"é".repeat(81)), "é".repeat(79) + "…");
    }
}
