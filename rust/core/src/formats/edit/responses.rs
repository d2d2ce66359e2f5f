//! Where the responses stand in a row of any format of pairs or candidates.

use std::borrow::Cow;

use super::super::candidates::TEXT;
use super::super::message::last_answer;
use super::super::schema::{Entry, Field, Format, Kind, Role, Shape};
use super::super::table::TABLE;
use super::row::{Row, Value};

/// A response in its row: what is cut is the text of all its parts.
pub struct Response<'a> {
    /// `{book}_cut` and `{book}_complete` say what became of it.
    pub book: &'a str,
    /// One of a list of responses.
    pub nested: bool,
    /// Where its text stands; nowhere for a turn that only calls tools.
    pub parts: Vec<(Value<'a>, Cow<'a, str>)>,
    /// Bytes before it in its only part: the transcript's earlier turns.
    pub lead: usize,
}

/// The responses of a row, and the two values that must not become the same, if it is a pair.
pub struct Found<'a> {
    pub responses: Vec<Response<'a>>,
    pub sides: Option<[Value<'a>; 2]>,
}

/// Which fields of a row are cut.
pub struct Fields {
    place: Place,
    /// By these names a row says what was cut: the fields themselves, or chosen and rejected.
    pub books: Vec<String>,
    /// Rows have any one of the fields, not all of them.
    pub is_any: bool,
}

/// Where the responses stand.
enum Place {
    /// In the fields that are named: each of them alone, or as the sides of a pair.
    Named {
        paired: bool,
    },
    Sides(Sides),
}

/// The fields of a pair.
struct Sides {
    chosen: &'static str,
    rejected: &'static str,
    /// In their place: [chosen, rejected].
    pair: Option<&'static str>,
    /// `labels` says which of the two is the chosen one.
    labelled: bool,
    /// They are transcripts.
    transcripts: bool,
}

type Result<T> = std::result::Result<T, String>;

fn wrong(what: impl std::fmt::Display) -> String {
    format!(": {what}; mend the row, or leave it out")
}

/// The names of a format's fields of one role.
fn names(entry: &Entry, role: Role) -> Vec<&'static str> {
    let fields = entry.fields().into_iter();
    fields
        .filter(|field| field.role == role)
        .map(|field| field.name)
        .collect()
}

/// Whether a field of this name holds the responses of some format.
fn holds_responses(name: &str) -> bool {
    TABLE.iter().any(|entry| {
        let mut fields = entry.forms.iter().flat_map(|form| form.fields);
        fields.any(|field| field.role == Role::Responses && field.name == name)
    })
}

impl Sides {
    fn of(entry: &Entry) -> Option<Self> {
        let name = |role| names(entry, role).first().copied();
        let is_transcript = |field: &Field| field.shapes.contains(&Shape::Transcript);
        Some(Self {
            chosen: name(Role::Chosen)?,
            rejected: name(Role::Rejected)?,
            pair: name(Role::Pair),
            labelled: entry.fields().iter().any(|field| field.name == "labels"),
            transcripts: entry.forms[0].fields.iter().any(is_transcript),
        })
    }
}

impl Fields {
    /// The responses of a format, or the named fields; without either chosen and rejected.
    pub fn new(format: Option<Format>, named: Option<Vec<String>>) -> Self {
        let entry = format.map(Format::entry);
        let candidates = entry.filter(|entry| entry.kind == Kind::Candidates);
        let sides = entry
            .filter(|entry| entry.kind == Kind::Preferences)
            .and_then(Sides::of);
        Self {
            place: sides.map_or(
                Place::Named {
                    paired: format.is_some(),
                },
                Place::Sides,
            ),
            books: named.unwrap_or_else(|| match candidates {
                Some(entry) => to_strings(&names(entry, Role::Responses)),
                None => to_strings(&["chosen", "rejected"]),
            }),
            is_any: candidates.is_some(),
        }
    }

    /// Whether these are the two sides of a pair.
    pub fn is_pair(&self) -> bool {
        self.books == ["chosen", "rejected"]
    }

    /// The row's responses. What is null or absent, and a turn that only calls tools, is none.
    pub fn find<'a>(&'a self, row: &Row<'a>) -> Result<Found<'a>> {
        let mut responses = Vec::new();
        let sides = match &self.place {
            Place::Sides(sides) => sides,
            &Place::Named { paired } => {
                for name in &self.books {
                    responses.extend(field(row, name, name, paired)?);
                }
                return Ok(Found {
                    responses,
                    sides: None,
                });
            }
        };
        if let (Some(pair), None) = (sides.pair, row.get(sides.chosen)) {
            return self.of_list(row, pair);
        }
        let (chosen, rejected) = if sides.labelled && !a_is_chosen(row)? {
            (sides.rejected, sides.chosen)
        } else {
            (sides.chosen, sides.rejected)
        };
        for (book, name) in self.books.iter().zip([chosen, rejected]) {
            responses.extend(if sides.transcripts {
                transcript(row, name, book)?
            } else {
                field(row, name, book, true)?
            });
        }
        Ok(Found {
            responses,
            sides: row.get(chosen).zip(row.get(rejected)).map(Into::into),
        })
    }

    /// `output` [chosen, rejected].
    fn of_list<'a>(&'a self, row: &Row<'a>, name: &str) -> Result<Found<'a>> {
        let items = row.get(name).and_then(|value| value.items());
        let Some(Ok(pair)) = items.map(<[Value; 2]>::try_from) else {
            return Err(wrong(format!(
                "field '{name}' must be a list of two, [chosen, rejected]"
            )));
        };
        let mut responses = Vec::new();
        for (book, value) in self.books.iter().zip(pair) {
            responses.extend(texts(value, name, book, false)?);
        }
        Ok(Found {
            responses,
            sides: Some(pair),
        })
    }
}

fn to_strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn a_is_chosen(row: &Row) -> Result<bool> {
    let labels = row.get("labels");
    let written = labels.map_or(Cow::Borrowed(""), |value| {
        value.text().unwrap_or(Cow::Borrowed(value.written()))
    });
    match written.trim().to_lowercase().as_str() {
        "1" | "1.0" | "true" => Ok(true),
        "0" | "0.0" | "false" => Ok(false),
        other => Err(wrong(format!(
            "field 'labels' must be 1 (A is preferred) or 0, got '{}'",
            beginning(other)
        ))),
    }
}

fn beginning(text: &str) -> String {
    text.chars().take(80).collect()
}

fn field<'a>(row: &Row<'a>, name: &str, book: &'a str, paired: bool) -> Result<Vec<Response<'a>>> {
    let Some(value) = row.get(name) else {
        return Ok(Vec::new());
    };
    if value.is_text() {
        let text = text_of(&value, book)?;
        if text.starts_with("\n\nHuman:") {
            return Err(wrong(format!(
                "column '{name}' holds transcripts (Human: …), whose beginning is the prompt; a file of format hh \
                 (chosen and rejected, no prompt) is cut in the last turn: leave columns out"
            )));
        }
    }
    let items = value.items();
    let lists = items.is_some() && holds_responses(name);
    let others = items
        .as_ref()
        .is_some_and(|items| items.iter().any(|item| !item.is_object()));
    if others && paired && !lists {
        return Err(wrong(format!(
            "field '{name}' must be a text, or a list of messages {{role, content}}"
        )));
    }
    match items {
        Some(items) if others || lists => {
            let mut found = Vec::new();
            for item in items {
                found.extend(texts(item, name, book, true)?);
            }
            Ok(found)
        }
        _ => texts(value, name, book, false),
    }
}

/// The last turn, where it is the assistant's.
fn transcript<'a>(row: &Row<'a>, name: &str, book: &'a str) -> Result<Vec<Response<'a>>> {
    let Some(value) = row.get(name).filter(Value::is_text) else {
        return Ok(Vec::new());
    };
    let text = text_of(&value, book)?;
    let lead = last_answer(&text);
    let response = |lead| Response {
        book,
        nested: false,
        parts: vec![(value, text)],
        lead,
    };
    Ok(lead.map(response).into_iter().collect())
}

/// The text, or that of the last message, as a response.
fn texts<'a>(
    value: Value<'a>,
    name: &str,
    book: &'a str,
    nested: bool,
) -> Result<Vec<Response<'a>>> {
    let items = value.items();
    let empty = items.as_ref().is_some_and(Vec::is_empty);
    let value = items
        .and_then(|items| items.last().copied())
        .unwrap_or(value);
    let response = |parts| Response {
        book,
        nested,
        parts,
        lead: 0,
    };
    if value.is_object() {
        return message(value, name, book, nested);
    }
    if value.is_text() {
        let text = text_of(&value, book)?;
        return Ok(vec![response(vec![(value, text)])]);
    }
    if value.is_null() || empty || value.written() == "[]" {
        return Ok(nested.then(|| response(Vec::new())).into_iter().collect());
    }
    Err(wrong(format!(
        "field '{name}' must hold text or messages, got {}",
        beginning(value.written())
    )))
}

fn message<'a>(
    value: Value<'a>,
    name: &str,
    book: &'a str,
    nested: bool,
) -> Result<Vec<Response<'a>>> {
    let members = value.members().unwrap_or_default();
    let get = |key: &str| {
        let found = members.iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| *value)
    };
    let (has_role, has_from) = (get("role").is_some(), get("from").is_some());
    if !has_role && !has_from {
        // A candidate with its score.
        if let Some(text) = TEXT.iter().find_map(|key| get(key)) {
            return texts(text, name, book, nested);
        }
    }
    let (role, content) = if has_from {
        (get("from"), get("value"))
    } else {
        (get("role"), get("content"))
    };
    let Some(role) = role.filter(|_| content.is_some() || get("tool_calls").is_some()) else {
        let mut keys: Vec<&str> = members.iter().map(|(key, _)| &**key).collect();
        keys.sort_unstable();
        return Err(wrong(format!(
            "field '{name}' must hold messages {{role, content}} or {{from, value}}, got ['{}']",
            keys.join("', '")
        )));
    };
    let calls = role.text().is_some_and(|role| role == "function_call");
    let parts = match content.filter(|content| !content.is_null() && !calls) {
        None => Vec::new(), // it only calls tools
        Some(content) if content.is_text() => {
            let text = text_of(&content, book)?;
            vec![(content, text)]
        }
        Some(content) => parts(&content, name, book)?,
    };
    Ok(vec![Response {
        book,
        nested,
        parts,
        lead: 0,
    }])
}

/// The texts of a content of several parts.
fn parts<'a>(
    content: &Value<'a>,
    name: &str,
    book: &str,
) -> Result<Vec<(Value<'a>, Cow<'a, str>)>> {
    let text = |part: &Value<'a>| {
        let members = part.members()?;
        let (_, text) = members.into_iter().rev().find(|(key, _)| key == "text")?;
        text.is_text().then_some(text)
    };
    let items = content.items().unwrap_or_default();
    let found: Option<Vec<Value>> = items.iter().map(text).collect();
    let Some(found) = found.filter(|found| !found.is_empty()) else {
        return Err(wrong(format!(
            "field '{name}' must hold text, or parts that are all {{type: text, text}}"
        )));
    };
    let with_text = |value: Value<'a>| Ok((value, text_of(&value, book)?));
    found.into_iter().map(with_text).collect()
}

fn text_of<'a>(value: &Value<'a>, book: &str) -> Result<Cow<'a, str>> {
    value.text().ok_or_else(|| {
        format!(
            ", field '{book}': half a surrogate pair (an escape \\ud800 to \\udfff) stands in it; replace the escape \
             by the whole character or by \\ufffd"
        )
    })
}
