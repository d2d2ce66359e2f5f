//! The names of all fields that rows have together, with those inside of them: each becomes a column of a frame.

use std::collections::HashSet;

use super::json::{Fields, MOST_FIELDS};
use super::raw::Raw;

/// Names that were seen, each behind those of the fields that it stands in.
#[derive(Default)]
struct Names {
    seen: HashSet<String>,
    path: String,
}

/// How many names JSON lines have; or, where they are more than a frame may have, the line and the first name beyond.
pub fn count_names(lines: &[u8]) -> Result<usize, (usize, String)> {
    let mut names = Names::default();
    for (at, line) in lines.split(|&byte| byte == b'\n').enumerate() {
        let fields = std::str::from_utf8(line).ok().map(Fields::parse);
        if let Some(Ok(fields)) = fields {
            names.add(&fields).map_err(|name| (at, name))?;
        }
    }
    Ok(names.seen.len())
}

impl Names {
    fn add(&mut self, fields: &Fields) -> Result<(), String> {
        let before = self.path.len();
        for (name, raw) in &fields.0 {
            if before > 0 {
                self.path.push('.');
            }
            self.path.push_str(name);
            if !self.seen.contains(&self.path) {
                if self.seen.len() == MOST_FIELDS {
                    return Err(self.path.clone());
                }
                self.seen.insert(self.path.clone());
            }
            self.add_inside(*raw)?;
            self.path.truncate(before);
        }
        Ok(())
    }

    fn add_inside(&mut self, raw: Raw) -> Result<(), String> {
        if raw.get().starts_with('{') {
            return Fields::parse(raw.get()).map_or(Ok(()), |fields| self.add(&fields));
        }
        let items = raw.items().unwrap_or_default();
        items.into_iter().try_for_each(|item| self.add_inside(item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_once_wherever_they_stand() {
        let lines = br#"{"a":1,"b":{"a":[{"c":1},{"d":2}]}}
{"b":{"a":[],"e":"x"},"a":null}
"#;
        assert_eq!(count_names(lines), Ok(6));
        assert_eq!(count_names(b"{}\n{}\n"), Ok(0));
    }

    #[test]
    fn more_than_a_frame_may_have_are_named() {
        for inside in [false, true] {
            let line = |at: usize| {
                if inside {
                    format!("{{\"m\":{{\"k{at}\":1}}}}\n")
                } else {
                    format!("{{\"k{at}\":1}}\n")
                }
            };
            let lines: String = (0..2 * MOST_FIELDS).map(line).collect();
            let (at, name) = if inside {
                (MOST_FIELDS - 1, format!("m.k{}", MOST_FIELDS - 1))
            } else {
                (MOST_FIELDS, format!("k{MOST_FIELDS}"))
            };
            assert_eq!(count_names(lines.as_bytes()), Err((at, name)));
        }
    }
}
