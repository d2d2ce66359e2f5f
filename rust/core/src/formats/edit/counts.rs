//! What a row says of its cuts: `{book}_cut` and `{book}_complete`.

use std::borrow::Cow;

use super::row::{Row, Value};

/// Add what went to `{book}_cut`; `{book}_complete` stays false where it was.
pub fn write_counts(
    row: &mut Row,
    book: &str,
    cuts: &[(bool, usize)],
    ended: bool,
) -> Result<(), String> {
    let before = earlier(row, &format!("{book}_cut"), cuts.len())?;
    let flags = earlier(row, &format!("{book}_complete"), cuts.len())?;
    let (mut counts, mut complete) = (Vec::new(), Vec::new());
    for ((&(_, cut), before_cut), flag) in cuts.iter().zip(&before).zip(&flags) {
        let number = match before_cut.trim() {
            "" | "null" | "false" => Some(0),
            written => written.parse::<i128>().ok(),
        };
        let Some(count) = number.and_then(|number| number.checked_add(cut as i128)) else {
            return Err(format!(
                ": field '{book}_cut' must be what an earlier cut wrote, got ['{}']; rename it",
                before.join("', '")
            ));
        };
        let whole = !flag.eq_ignore_ascii_case("false") && (ended || cut == 0);
        counts.push(count.to_string());
        complete.push(whole.to_string());
    }
    let nested = cuts[0].0;
    let joined = |values: Vec<String>| {
        if nested {
            format!("[{}]", values.join(", "))
        } else {
            values.concat()
        }
    };
    row.put(&format!("{book}_cut"), joined(counts));
    row.put(&format!("{book}_complete"), joined(complete));
    Ok(())
}

/// What an earlier cut wrote of each response; empty texts where there is nothing.
fn earlier(row: &Row, name: &str, count: usize) -> Result<Vec<String>, String> {
    let written = |value: &Value| {
        let text = value.is_text().then(|| value.text()).flatten();
        text.map_or_else(|| value.written().to_owned(), Cow::into_owned)
    };
    let Some(value) = row.get(name).filter(|value| !written(value).is_empty()) else {
        return Ok(vec![String::new(); count]);
    };
    let found: Vec<String> = match value.items() {
        Some(items) => items.iter().map(written).collect(),
        None => match written(&value).strip_prefix('[') {
            Some(list) if value.is_text() => list
                .trim_matches(['[', ']', ' '])
                .split(", ")
                .map(str::to_owned)
                .collect(),
            _ => vec![written(&value)],
        },
    };
    if found.len() == count {
        return Ok(found);
    }
    Err(format!(
        ": field '{name}' must have {count} entries, as many as responses, got {}",
        value.written()
    ))
}
