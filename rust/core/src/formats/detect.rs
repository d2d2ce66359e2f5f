//! Which format rows have, by their fields and the kinds of their values.

use std::cell::LazyCell;
use std::collections::HashSet;

use memchr::memmem;

use super::Reject;
use super::chat::{chat, is_transcript, spelled_chat, spelled_list};
use super::fields::unquoted;
use super::json::{Fields, text};
use super::message::Origin;
use super::raw::Raw;
use super::schema::{Entry, Field, Form, Format, Kind, Role, Shape};
use super::table::TABLE;
use crate::reject::shorten;

/// What `detect` saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The candidate that most rows fit.
    pub format: Option<Format>,
    /// Field names of all rows that are JSON objects.
    pub fields: Vec<String>,
    /// Some rows have whole texts without a prompt: where the prompt ends is not known.
    pub unmarked: bool,
}

/// Those of the names that a line of JSON may have as a field, since they stand in quotes somewhere.
pub fn quoted<'n>(lines: &[u8], names: &'n [String]) -> Vec<&'n str> {
    let stands = |name: &&String| memmem::find(lines, format!("\"{name}\"").as_bytes()).is_some();
    names.iter().filter(stands).map(String::as_str).collect()
}

/// The format that most rows have, of the kind that most rows have; bad rows tell nothing. Of formats that as many rows
/// have it is the first candidate.
pub fn detect<'a>(rows: impl Iterator<Item = &'a [u8]>, candidates: &[Format]) -> Detected {
    let mut seen = Detected {
        format: None,
        fields: Vec::new(),
        unmarked: false,
    };
    let mut known = HashSet::new();
    let mut counts = vec![0_usize; candidates.len()];
    let mut of_kinds: Vec<(Kind, usize)> = Vec::new(); // in the order of the candidates
    for format in candidates {
        if !of_kinds.iter().any(|(kind, _)| *kind == format.kind()) {
            of_kinds.push((format.kind(), 0));
        }
    }
    for row in rows {
        let Ok(fields) = Fields::of_row(row) else {
            continue;
        };
        for (name, _) in &fields.0 {
            if !known.contains(&**name) {
                known.insert(name.to_string());
                seen.fields.push(name.to_string());
            }
        }
        seen.unmarked |= fields.get("prompt").is_none()
            && ["chosen", "rejected"]
                .iter()
                .all(|name| begins(fields.get(name), "\""));
        let found: Vec<bool> = candidates
            .iter()
            .map(|&format| fits(&fields, format))
            .collect();
        for (count, &found) in counts.iter_mut().zip(&found) {
            *count += usize::from(found);
        }
        for (kind, count) in &mut of_kinds {
            let of_kind = |(format, found): (&Format, &bool)| *found && format.kind() == *kind;
            *count += usize::from(candidates.iter().zip(&found).any(of_kind));
        }
    }
    let kind = first_of_most(of_kinds);
    let counted = candidates.iter().copied().zip(counts);
    seen.format = first_of_most(counted.filter(|(format, _)| Some(format.kind()) == kind));
    seen
}

/// Of what has the largest count, above 0, the first.
fn first_of_most<T>(counted: impl IntoIterator<Item = (T, usize)>) -> Option<T> {
    let larger = |best: (T, usize), other: (T, usize)| if other.1 > best.1 { other } else { best };
    let most = counted.into_iter().reduce(larger);
    most.filter(|(_, count)| *count > 0).map(|(item, _)| item)
}

/// The reject of a row that was read as `format`; it says so where the row has another format of the same kind.
pub fn of_format(fields: &Fields, format: Format, reject: Reject) -> Reject {
    if fits(fields, format) {
        return reject;
    }
    let is_other = |entry: &&Entry| fits(fields, entry.format);
    let kind = format.kind();
    let of_kind = TABLE
        .iter()
        .filter(|entry| entry.kind == kind)
        .find(is_other);
    let of_another = || {
        let others = TABLE.iter().filter(|entry| entry.kind != Kind::Ranked);
        others.filter(|_| !answers(fields, format)).find(is_other)
    };
    let Some(other) = of_kind.or_else(of_another).map(|entry| entry.format) else {
        return reject;
    };
    Reject {
        reason: "another_format",
        field: String::new(),
        value: shorten(&fields.names()),
        rule: format!(
            "a row must be of format {}, which most of the first rows have; this one is of format {}",
            format.name(),
            other.name()
        ),
        remedy: "read the rows of each format apart",
    }
}

/// Whether the row has a field that holds what the format's responses are.
fn answers(fields: &Fields, format: Format) -> bool {
    let needed = format.entry().forms[0].needed();
    let mut own = needed.into_iter().flatten();
    own.any(|field| field.role != Role::Prompt && fields.get(field.name).is_some())
}

/// Whether the row is written in one of the format's forms.
fn fits(fields: &Fields, format: Format) -> bool {
    let written = |form: &Form| {
        let absent = |name: &&str| fields.get(name).is_none();
        let given = |field: &&Field| field.shapes.is_empty() || stands(fields, field);
        form.without.iter().all(absent)
            && form
                .needed()
                .iter()
                .all(|alternatives| alternatives.iter().any(given))
    };
    format.entry().forms.iter().any(written)
}

/// Whether the field has one of its shapes.
fn stands(fields: &Fields, field: &Field) -> bool {
    let Some(raw) = fields.get(field.name) else {
        return false;
    };
    let is_text = raw.get().starts_with('"');
    let words = LazyCell::new(|| is_text.then(|| text(raw, "").ok()).flatten());
    let spelled = LazyCell::new(|| words.as_deref().and_then(spelled_chat));
    let begins = |sign: char| {
        raw.get().starts_with(sign) || spelled.is_some_and(|json| json.get().starts_with(sign))
    };
    let is = |shape: &Shape| match shape {
        Shape::Text => words.is_some(),
        Shape::Chat => begins('['),
        Shape::Turns | Shape::List => {
            raw.get().starts_with('[')
                || words
                    .as_deref()
                    .is_some_and(|it| spelled_list(it).is_some())
        }
        Shape::Message => begins('{'),
        Shape::WholeChat => begins('[') && is_whole_chat(raw),
        Shape::Transcript => words.as_deref().is_some_and(is_transcript),
        Shape::Number => serde_json::from_str::<f64>(unquoted(raw)).is_ok(),
    };
    field.shapes.iter().any(is)
}

fn begins(raw: Option<Raw>, sign: &str) -> bool {
    raw.is_some_and(|raw| raw.get().starts_with(sign))
}

fn is_whole_chat(raw: Raw) -> bool {
    let messages = chat(raw, "", &Origin::spelled()).ok();
    messages.is_some_and(|messages| messages.len() > 1 && messages[0].role != "assistant")
}
