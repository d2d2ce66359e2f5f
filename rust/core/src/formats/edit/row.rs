//! A row whose values are replaced where they stand: everything else stays as it was written.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;

use super::super::json::{Fields, text};
use super::super::raw::Raw;

/// A row: a JSON object, or the cells of a CSV record.
pub struct Row<'a> {
    cells: Cells<'a>,
    edits: Vec<Edit>,
    /// Names with the JSON of their new values.
    added: Vec<(String, String)>,
}

enum Cells<'a> {
    Json {
        json: &'a str,
        fields: Fields<'a>,
    },
    Csv {
        header: &'a [String],
        cells: &'a [String],
    },
}

struct Edit {
    cell: usize,
    at: Range<usize>,
    text: String,
}

/// Where a text stands in a row.
pub struct Place {
    cell: usize,
    at: Range<usize>,
    /// It is a JSON string, and so are those in which the JSON stands: how many in all.
    levels: usize,
    /// The JSON has no other characters than ASCII.
    is_ascii: bool,
}

/// A value where it stands in a row.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    cell: usize,
    /// The row's JSON, or the cell.
    whole: &'a str,
    held: Held<'a>,
}

#[derive(Clone, Copy)]
enum Held<'a> {
    /// A cell that is text.
    Plain(&'a str),
    Json(Raw<'a>),
}

impl<'a> Value<'a> {
    /// As it is written.
    pub fn written(&self) -> &'a str {
        match self.held {
            Held::Plain(cell) => cell,
            Held::Json(raw) => raw.get(),
        }
    }

    fn range(&self) -> Range<usize> {
        let start = self.written().as_ptr() as usize - self.whole.as_ptr() as usize;
        start..start + self.written().len()
    }

    /// JSON that is all of a text.
    pub fn of_text(whole: &'a str, json: Raw<'a>) -> Self {
        Self {
            cell: 0,
            whole,
            held: Held::Json(json),
        }
    }

    /// Where it stands, if it is a text.
    pub fn place(&self) -> Place {
        Place {
            cell: self.cell,
            at: self.range(),
            levels: usize::from(matches!(self.held, Held::Json(_))),
            is_ascii: self.written().is_ascii(),
        }
    }

    /// Where something in the JSON that this text holds stands in the row; `places` are those in the text, in order.
    pub fn outward(&self, places: impl Iterator<Item = Place>) -> Vec<Place> {
        let start = self.range().start;
        let (escaped, deeper) = match self.held {
            Held::Plain(_) => (None, 0),
            Held::Json(raw) => (Some(raw.get()), 1),
        };
        let is_ascii = escaped.is_none_or(str::is_ascii);
        let mut walk = Walk { inner: 0, outer: 1 };
        let mut at = |inner: usize| match escaped {
            Some(escaped) => start + walk.to(escaped, inner),
            None => start + inner,
        };
        let place = |place: Place| Place {
            cell: self.cell,
            at: at(place.at.start)..at(place.at.end),
            levels: place.levels + deeper,
            is_ascii: place.is_ascii && is_ascii,
        };
        places.map(place).collect()
    }

    fn begins(&self, sign: char) -> bool {
        matches!(self.held, Held::Json(raw) if raw.get().starts_with(sign))
    }

    pub fn is_text(&self) -> bool {
        matches!(self.held, Held::Plain(_)) || self.begins('"')
    }

    pub fn is_object(&self) -> bool {
        self.begins('{')
    }

    pub fn is_null(&self) -> bool {
        self.written() == "null" && !self.is_text()
    }

    /// Its text; none where half a surrogate pair stands in it, or where it is no text.
    pub fn text(&self) -> Option<Cow<'a, str>> {
        match self.held {
            Held::Plain(cell) => Some(Cow::Borrowed(cell)),
            Held::Json(raw) => text(raw, "").ok(),
        }
    }

    /// The values of a list.
    pub fn items(&self) -> Option<Vec<Self>> {
        let Held::Json(raw) = self.held else {
            return None;
        };
        let child = |raw| self.child(raw);
        raw.get()
            .starts_with('[')
            .then(|| Some(raw.items()?.into_iter().map(child).collect()))?
    }

    /// The fields of an object.
    pub fn fields(&self) -> Option<Fields<'a>> {
        let Held::Json(raw) = self.held else {
            return None;
        };
        Fields::parse(raw.get()).ok()
    }

    /// A value that stands in this one.
    pub fn child(&self, raw: Raw<'a>) -> Self {
        Self {
            held: Held::Json(raw),
            ..*self
        }
    }
}

/// A place in a text and in the JSON string that spells it.
struct Walk {
    inner: usize,
    outer: usize,
}

impl Walk {
    /// Go on to a byte of the text: where it is spelled.
    fn to(&mut self, escaped: &str, inner: usize) -> usize {
        while self.inner < inner {
            let rest = &escaped[self.outer..];
            let unit = |at: usize| {
                let digits = rest.get(at..at + 4)?;
                u32::from_str_radix(digits, 16).ok()
            };
            let (spelled, length) = match rest.as_bytes() {
                [b'\\', b'u', ..] => match unit(2).map(char::from_u32) {
                    Some(Some(character)) => (6, character.len_utf8()),
                    _ => (12, 4), // a surrogate pair
                },
                [b'\\', ..] => (2, 1),
                _ => {
                    let length = rest.chars().next().map_or(1, char::len_utf8);
                    (length, length)
                }
            };
            self.outer += spelled;
            self.inner += length;
        }
        self.outer
    }
}

impl<'a> Row<'a> {
    pub fn of_json(json: &'a str, fields: Fields<'a>) -> Self {
        Self::of(Cells::Json { json, fields })
    }

    /// Of a record; `header` may name more columns than it has cells.
    pub fn of_record(header: &'a [String], cells: &'a [String]) -> Self {
        Self::of(Cells::Csv { header, cells })
    }

    fn of(cells: Cells<'a>) -> Self {
        Self {
            cells,
            edits: Vec::new(),
            added: Vec::new(),
        }
    }

    /// The value of a field that is there and not null.
    pub fn get(&self, name: &str) -> Option<Value<'a>> {
        match &self.cells {
            Cells::Json { json, fields } => Some(Value {
                cell: 0,
                whole: json,
                held: Held::Json(fields.get(name)?),
            }),
            Cells::Csv { header, cells } => {
                let cell = header.iter().position(|column| column == name)?;
                let text = cells.get(cell)?.as_str();
                Some(Value {
                    cell,
                    whole: text,
                    held: Held::Plain(text),
                })
            }
        }
    }

    /// Put a text in the place of another; in ASCII where it was.
    pub fn replace(&mut self, place: &Place, text: &str) {
        let mut spelled = text.to_owned();
        for level in 0..place.levels {
            let string = json_string(&spelled, place.is_ascii);
            let quotes = usize::from(level > 0); // a string around it has its own
            spelled = string[quotes..string.len() - quotes].into();
        }
        self.edit(place.cell, place.at.clone(), spelled);
    }

    /// Set a field to a value, given as JSON; a new one comes last.
    pub fn put(&mut self, name: &str, json: String) {
        if let Cells::Json { json: row, fields } = &self.cells {
            if let Some((_, raw)) = fields.0.iter().find(|(known, _)| known == name) {
                let start = raw.get().as_ptr() as usize - row.as_ptr() as usize;
                self.edit(0, start..start + raw.get().len(), json);
                return;
            }
        }
        self.added.push((name.to_owned(), json));
    }

    fn edit(&mut self, cell: usize, at: Range<usize>, text: String) {
        self.edits.push(Edit { cell, at, text });
    }

    /// The value as it is written now.
    pub fn now(&self, value: &Value<'a>) -> String {
        self.edited(value.cell, value.whole, value.range())
    }

    fn edited(&self, cell: usize, whole: &str, range: Range<usize>) -> String {
        let mut edits: Vec<&Edit> = self
            .edits
            .iter()
            .filter(|edit| {
                edit.cell == cell && range.start <= edit.at.start && edit.at.end <= range.end
            })
            .collect();
        edits.sort_by_key(|edit| edit.at.start);
        let mut text = String::with_capacity(range.len());
        let mut from = range.start;
        for edit in edits {
            if edit.at.start >= from {
                text.push_str(&whole[from..edit.at.start]);
                text.push_str(&edit.text);
                from = edit.at.end;
            }
        }
        text.push_str(&whole[from..range.end]);
        text
    }

    /// The row as it is now: an object, or a record without its line end.
    pub fn line(&self, delimiter: u8) -> String {
        match &self.cells {
            Cells::Json { json, fields } => {
                let close = json.trim_end().len() - 1;
                let mut line = self.edited(0, json, 0..close);
                for (at, (name, value)) in self.added.iter().enumerate() {
                    let comma = if at > 0 || !fields.0.is_empty() {
                        ", "
                    } else {
                        ""
                    };
                    line.push_str(comma);
                    line.push_str(&json_string(name, false));
                    line.push_str(": ");
                    line.push_str(value);
                }
                line.push_str(&json[close..]);
                line
            }
            Cells::Csv { header, cells } => {
                let cell = |at: usize| {
                    let added = self.added.iter().find(|(name, _)| *name == header[at]);
                    let old = cells.get(at).map_or("", String::as_str);
                    added.map_or_else(
                        || self.edited(at, old, 0..old.len()),
                        |(_, value)| value.clone(),
                    )
                };
                let cells: Vec<String> = (0..header.len()).map(cell).collect();
                record(&cells, delimiter)
            }
        }
    }
}

/// Cells as one record, with quotes where they are needed.
pub fn record(cells: &[String], delimiter: u8) -> String {
    let special = ['"', '\n', '\r', char::from(delimiter)];
    let mut line = String::new();
    for (at, cell) in cells.iter().enumerate() {
        if at > 0 {
            line.push(char::from(delimiter));
        }
        if cell.contains(special) || (cells.len() == 1 && cell.is_empty()) {
            line.push('"');
            line.push_str(&cell.replace('"', "\"\""));
            line.push('"');
        } else {
            line.push_str(cell);
        }
    }
    line
}

/// The text as a JSON string; with `ascii` all other characters as escapes.
pub fn json_string(text: &str, ascii: bool) -> String {
    let json = serde_json::Value::from(text).to_string();
    if !ascii || json.is_ascii() {
        return json;
    }
    let mut escaped = String::with_capacity(2 * json.len());
    let mut units = [0; 2];
    for character in json.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            for unit in character.encode_utf16(&mut units) {
                let _ = write!(escaped, "\\u{unit:04x}"); // a String takes everything
            }
        }
    }
    escaped
}
