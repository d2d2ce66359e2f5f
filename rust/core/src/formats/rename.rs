//! The fields of JSON lines under other names.

use memchr::memchr;
use serde_json::Value;

use super::json::Fields;

/// The lines with every field whose name is the first of a pair under the second; values keep their bytes. A line that
/// is no object, or has none of the fields, stays as it is.
pub fn rename_fields(data: &[u8], names: &[(String, String)]) -> Vec<u8> {
    let mut renamed = Vec::with_capacity(data.len());
    let mut rest = data;
    while !rest.is_empty() {
        let end = memchr(b'\n', rest).unwrap_or(rest.len());
        let (line, behind) = rest.split_at(end);
        match object(line, names) {
            Some(text) => renamed.extend_from_slice(text.as_bytes()),
            None => renamed.extend_from_slice(line),
        }
        let (newline, next) = behind.split_at(behind.len().min(1));
        renamed.extend_from_slice(newline);
        rest = next;
    }
    renamed
}

fn object(line: &[u8], names: &[(String, String)]) -> Option<String> {
    let fields = Fields::parse(std::str::from_utf8(line).ok()?).ok()?;
    let new_name = |name: &str| names.iter().find(|(from, _)| from == name);
    if !fields.0.iter().any(|(name, _)| new_name(name).is_some()) {
        return None;
    }
    let mut text = String::with_capacity(line.len());
    for (name, raw) in &fields.0 {
        let name = new_name(name).map_or(&**name, |(_, to)| to);
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push_str(&Value::from(name).to_string());
        text.push(':');
        text.push_str(raw.get());
    }
    Some(text + "}")
}

#[cfg(test)]
mod tests {
    use super::rename_fields;

    fn renamed(data: &str, names: &[(&str, &str)]) -> String {
        let names: Vec<_> = names
            .iter()
            .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()))
            .collect();
        String::from_utf8(rename_fields(data.as_bytes(), &names)).unwrap_or_default()
    }

    #[test]
    fn values_keep_their_bytes_and_lines_their_places() {
        let data = "{\"question\": \"a\\u0062\", \"n\":1.50 }\r\n\n{\"question\":{\"question\":1e400}}\n[1]\n{broken";
        let wanted = "{\"prompt\":\"a\\u0062\",\"n\":1.50}\n\n{\"prompt\":{\"question\":1e400}}\n[1]\n{broken";
        assert_eq!(renamed(data, &[("question", "prompt")]), wanted);
    }

    #[test]
    fn names_may_change_places_and_be_escaped() {
        let swapped = renamed(
            "{\"chosen\":1,\"rejected\":2}",
            &[("chosen", "rejected"), ("rejected", "chosen")],
        );
        assert_eq!(swapped, "{\"rejected\":1,\"chosen\":2}");
        assert_eq!(
            renamed("{\"\\u0061\\\"\":1}", &[("a\"", "b\"")]),
            "{\"b\\\"\":1}"
        );
        assert_eq!(renamed("{ \"x\": 1 }", &[("y", "z")]), "{ \"x\": 1 }");
    }
}
