//! Where the responses stand in a row of any format of pairs or candidates.

use std::borrow::Cow;

use super::super::candidates::TEXT;
use super::super::chat::{
    ASSISTANT, is_begun, is_transcript, last_answer, spelled_chat, spelled_list,
};
use super::super::message::{keys, lacks_content, second_statement};
use super::super::schema::{Entry, Field, Format, Kind, Role, Shape};
use super::super::table::TABLE;
use super::row::{Place as Spot, Row, Value};

/// A response in its row: what is cut is the text of all its parts.
pub struct Response<'a> {
    /// `{book}_cut` and `{book}_complete` say what became of it.
    pub book: &'a str,
    /// One of a list of responses.
    pub nested: bool,
    /// Where its text stands; nowhere for a turn that only calls tools.
    pub parts: Vec<Part<'a>>,
    /// Bytes before it in its only part: the transcript's earlier turns.
    pub lead: usize,
}

/// A text in its place.
pub struct Part<'a> {
    pub place: Spot,
    pub text: Cow<'a, str>,
}

/// The responses of a row, and the two values that must not become the same, if it is a pair.
pub struct Found<'a> {
    pub responses: Vec<Response<'a>>,
    pub sides: Option<Both<'a>>,
}

/// The sides of a pair: two values, or the text that spells a list of both.
pub enum Both<'a> {
    Values([Value<'a>; 2]),
    Text(Value<'a>),
}

/// Which fields of a row are cut.
pub struct Fields {
    place: Place,
    /// By these names a row says what was cut: the fields themselves, or chosen and rejected.
    pub books: Vec<String>,
    /// Rows have any one of the fields, not all of them.
    pub is_any: bool,
    /// The fields of the format's prompt.
    prompts: Vec<&'static str>,
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
            prompts: entry.map_or(Vec::new(), |entry| names(entry, Role::Prompt)),
        }
    }

    /// Whether a row's field of this name is looked at, here or by some format.
    pub fn reads(&self, name: &str) -> bool {
        let is_known = |entry: &Entry| entry.fields().iter().any(|field| field.name == name);
        self.books.iter().any(|book| name.starts_with(&**book)) || TABLE.iter().any(is_known)
    }

    /// Whether these are the two sides of a pair.
    pub fn is_pair(&self) -> bool {
        self.books == ["chosen", "rejected"]
    }

    /// The row's responses. What is null or absent, and a turn that only calls tools, is none.
    pub fn find<'a>(&'a self, row: &Row<'a>) -> Result<Found<'a>> {
        let is_open = self.prompts.iter().any(|name| {
            let text = row.get(name).and_then(|prompt| prompt.text());
            text.is_some_and(|text| is_begun(&text))
        });
        let search = |name: &'a str, book: &'a str, is_paired| Search {
            name,
            book,
            is_paired,
            is_nested: false,
            is_open,
        };
        let mut responses = Vec::new();
        let sides = match &self.place {
            Place::Sides(sides) => sides,
            &Place::Named { paired } => {
                for name in &self.books {
                    responses.extend(search(name, name, paired).in_row(row)?);
                }
                return Ok(Found {
                    responses,
                    sides: None,
                });
            }
        };
        let pair = sides.pair.and_then(|pair| Some((pair, row.get(pair)?)));
        if let (Some((pair, value)), Some(_)) = (pair, row.get(sides.chosen)) {
            if value.items().is_some() {
                return Err(wrong(format!(
                    "fields '{}' and '{pair}' stand for the same",
                    sides.chosen
                )));
            }
        }
        if let (Some(pair), None) = (sides.pair, row.get(sides.chosen)) {
            let Some(value) = row.get(pair) else {
                return Err(not_two(pair));
            };
            let books = [&*self.books[0], &*self.books[1]];
            return in_pair(value, books.map(|book| search(pair, book, true)));
        }
        let (chosen, rejected) = if sides.labelled && !a_is_chosen(row)? {
            (sides.rejected, sides.chosen)
        } else {
            (sides.chosen, sides.rejected)
        };
        for (book, name) in self.books.iter().zip([chosen, rejected]) {
            let found = search(name, book, true).in_row(row)?;
            let without = sides.transcripts && found.iter().any(|found| found.lead == 0);
            responses.extend(if without { Vec::new() } else { found });
        }
        Ok(Found {
            responses,
            sides: row
                .get(chosen)
                .zip(row.get(rejected))
                .map(|both| Both::Values(both.into())),
        })
    }
}

/// Of two texts that say the same one alone would be cut.
fn two_names(field: &str, first: &str, other: &str) -> String {
    wrong(format!(
        "field '{field}' has '{first}' and '{other}', which stand for the same"
    ))
}

fn not_two(name: &str) -> String {
    wrong(format!(
        "field '{name}' must be a list of two, [chosen, rejected]"
    ))
}

/// `output` [chosen, rejected], as a list or as text that spells one.
fn in_pair<'a>(value: Value<'a>, searches: [Search<'a>; 2]) -> Result<Found<'a>> {
    let name = searches[0].name;
    if let Some(text) = value.is_text().then(|| value.text()).flatten() {
        let Some(json) = spelled_list(&text) else {
            return Err(not_two(name));
        };
        let inner = searches.map(Search::inner);
        let found = in_pair(Value::of_text(&text, json), inner)?.responses;
        return Ok(Found {
            responses: outward(value, found, |at| searches[at.min(1)].book),
            sides: Some(Both::Text(value)),
        });
    }
    let Some(Ok(pair)) = value.items().map(<[Value; 2]>::try_from) else {
        return Err(not_two(name));
    };
    let mut responses = Vec::new();
    for (search, value) in searches.into_iter().zip(pair) {
        responses.extend(search.in_value(value)?);
    }
    Ok(Found {
        responses,
        sides: Some(Both::Values(pair)),
    })
}

/// What was found in the JSON that a text holds, in the places of the row.
fn outward<'a>(
    value: Value<'a>,
    found: Vec<Response<'_>>,
    book: impl Fn(usize) -> &'a str,
) -> Vec<Response<'a>> {
    let (mut places, mut texts, mut made) = (Vec::new(), Vec::new(), Vec::new());
    for (at, response) in found.into_iter().enumerate() {
        made.push((
            book(at),
            response.nested,
            response.lead,
            response.parts.len(),
        ));
        for part in response.parts {
            places.push(part.place);
            texts.push(part.text.into_owned());
        }
    }
    let mut parts = value
        .outward(places.into_iter())
        .into_iter()
        .zip(texts)
        .map(|(place, text)| Part {
            place,
            text: Cow::Owned(text),
        });
    let response = |(book, nested, lead, count)| Response {
        book,
        nested,
        lead,
        parts: parts.by_ref().take(count).collect(),
    };
    made.into_iter().map(response).collect()
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

/// What is looked for, and where.
#[derive(Clone, Copy)]
struct Search<'a> {
    name: &'a str,
    book: &'a str,
    /// Of a row whose format is known.
    is_paired: bool,
    is_nested: bool,
    /// The prompt is a transcript that ends with `Assistant:`: a space before the answer belongs to it.
    is_open: bool,
}

impl<'a> Search<'a> {
    /// The same with names that live shorter.
    fn inner<'i>(self) -> Search<'i>
    where
        'a: 'i,
    {
        self
    }

    fn in_row(self, row: &Row<'a>) -> Result<Vec<Response<'a>>> {
        row.get(self.name)
            .map_or(Ok(Vec::new()), |value| self.in_field(value))
    }

    /// In a field: a text, a chat, or a list of responses.
    fn in_field(self, value: Value<'a>) -> Result<Vec<Response<'a>>> {
        let lists = holds_responses(self.name);
        if let Some(text) = value.is_text().then(|| value.text()).flatten() {
            if !self.is_paired && is_transcript(&text) {
                return Err(wrong(format!(
                    "column '{}' holds transcripts (Human: …), whose beginning is the prompt; a file of format hh \
                     (chosen and rejected, no prompt) is cut in the last turn: leave columns out",
                    self.name
                )));
            }
            let json = spelled_list(&text).filter(|_| lists);
            let Some(json) = json else {
                return self.in_value(value);
            };
            let found = self.inner().in_field(Value::of_text(&text, json))?;
            return Ok(outward(value, found, |_| self.book));
        }
        let Some(items) = value.items() else {
            return self.in_value(value);
        };
        let others = items.iter().any(|item| !item.is_object());
        if others && self.is_paired && !lists {
            return Err(wrong(format!(
                "field '{}' must be a text, or a list of messages {{role, content}}",
                self.name
            )));
        }
        if !others && !lists {
            return self.in_value(value);
        }
        let nested = Self {
            is_nested: true,
            ..self
        };
        let mut found = Vec::new();
        for item in items {
            found.extend(nested.in_value(item)?);
        }
        Ok(found)
    }

    /// The text, or that of the last message, as a response.
    fn in_value(self, value: Value<'a>) -> Result<Vec<Response<'a>>> {
        if value.is_text() {
            let text = text_of(&value, self.book)?;
            if let Some(json) = spelled_chat(&text) {
                let found = self.inner().in_value(Value::of_text(&text, json))?;
                return Ok(outward(value, found, |_| self.book));
            }
            return Ok(self.in_text(value, text).into_iter().collect());
        }
        let items = value.items();
        let empty = items.as_ref().is_some_and(Vec::is_empty);
        let value = items
            .and_then(|items| items.last().copied())
            .unwrap_or(value);
        if value.is_object() {
            return self.in_message(value);
        }
        if value.is_null() || empty {
            let none = self.is_nested.then(|| self.response(Vec::new(), 0));
            return Ok(none.into_iter().collect());
        }
        Err(wrong(format!(
            "field '{}' must hold text or messages, got {}",
            self.name,
            beginning(value.written())
        )))
    }

    /// The whole text, or the last answer of a transcript, if it is the assistant's.
    fn in_text(self, value: Value<'a>, text: Cow<'a, str>) -> Option<Response<'a>> {
        let lead = if self.is_paired && (is_transcript(&text) || text.starts_with(ASSISTANT)) {
            last_answer(&text)
        } else {
            Some(usize::from(self.is_open && text.starts_with(' ')))
        };
        let place = value.place();
        let found = lead.map(|lead| self.response(vec![Part { place, text }], lead));
        found.or_else(|| self.is_nested.then(|| self.response(Vec::new(), 0)))
    }

    fn response(self, parts: Vec<Part<'a>>, lead: usize) -> Response<'a> {
        Response {
            book: self.book,
            nested: self.is_nested,
            parts,
            lead,
        }
    }

    fn in_message(self, value: Value<'a>) -> Result<Vec<Response<'a>>> {
        let Some(fields) = value.fields() else {
            return Ok(Vec::new());
        };
        fields.check_once("").map_err(|reject| wrong(reject.rule))?;
        let get = |key: &str| fields.get(key).map(|raw| value.child(raw));
        if get("role").is_none() && get("from").is_none() {
            // A candidate with its score.
            let mut texts = TEXT.iter().filter_map(|key| Some((*key, get(key)?)));
            if let Some((key, text)) = texts.next() {
                if let Some((other, _)) = texts.next() {
                    return Err(two_names(self.name, key, other));
                }
                return self.in_value(text);
            }
        }
        let (role_key, content_key) = keys(&fields);
        let Some(role) = get(role_key).filter(|_| !lacks_content(&fields, content_key)) else {
            let mut keys: Vec<&str> = fields.0.iter().map(|(key, _)| &**key).collect();
            keys.sort_unstable();
            return Err(wrong(format!(
                "field '{}' must hold messages {{role, content}} or {{from, value}}, got ['{}']",
                self.name,
                keys.join("', '")
            )));
        };
        if let Some((other, _)) = second_statement(&fields, role_key) {
            return Err(two_names(self.name, content_key, other));
        }
        let calls = role.text().is_some_and(|role| role == "function_call");
        let parts = match get(content_key).filter(|_| !calls) {
            None => Vec::new(), // it only calls tools
            Some(content) if content.is_text() => vec![part(content, self.book)?],
            Some(content) => parts(&content, self.name, self.book)?,
        };
        Ok(vec![self.response(parts, 0)])
    }
}

fn part<'a>(value: Value<'a>, book: &str) -> Result<Part<'a>> {
    Ok(Part {
        place: value.place(),
        text: text_of(&value, book)?,
    })
}

/// The texts of a content of several parts.
fn parts<'a>(content: &Value<'a>, name: &str, book: &str) -> Result<Vec<Part<'a>>> {
    let text = |part: &Value<'a>| {
        let fields = part.fields()?;
        let is_text = fields
            .get("type")
            .is_none_or(|kind| kind.get() == "\"text\"");
        let text = fields.get("text").map(|raw| part.child(raw));
        (is_text && text.is_none_or(|text| text.is_text())).then_some(text)
    };
    let items = content
        .items()
        .map(|items| items.iter().map(text).collect());
    let Some(Some(found)) = items else {
        return Err(wrong(format!(
            "field '{name}' must hold text, or parts that are all {{type: text, text}}"
        )));
    };
    let found: Vec<Option<Value>> = found;
    found
        .into_iter()
        .flatten()
        .map(|value| part(value, book))
        .collect()
}

fn text_of<'a>(value: &Value<'a>, book: &str) -> Result<Cow<'a, str>> {
    value.text().ok_or_else(|| {
        format!(
            ", field '{book}': half a surrogate pair (an escape \\ud800 to \\udfff) stands in it; replace the escape \
             by the whole character or by \\ufffd"
        )
    })
}
