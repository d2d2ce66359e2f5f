//! CSV records, one after the other, as JSON lines: objects by the header, or lists of cells.

use super::json::ICONV;
use super::table::holds_text;
use crate::reject::shorten;
use crate::{Error, Result};
use memchr::{memchr, memchr2};

/// Quotes stand around whole cells and are doubled inside them (RFC 4180); LF or CRLF ends a record.
pub struct Csv {
    delimiter: u8,
    as_cells: bool,
    breaks: u64,
    header: Option<Vec<String>>,
    records: u64,
}

impl Csv {
    /// Records after the header as objects.
    pub fn objects(delimiter: u8) -> Self {
        Self::new(delimiter, false)
    }

    /// All records as lists, before their cells the line on which they end.
    pub fn cells(delimiter: u8) -> Self {
        Self::new(delimiter, true)
    }

    fn new(delimiter: u8, as_cells: bool) -> Self {
        Self {
            delimiter,
            as_cells,
            breaks: 0,
            header: None,
            records: 0,
        }
    }

    /// The line at hand, from 1.
    pub fn line(&self) -> u64 {
        self.breaks + 1
    }

    /// Append the next record to `out` as one JSON object; up to where `pending` is used, and whether there was one.
    pub fn next_row(
        &mut self,
        pending: &[u8],
        from: usize,
        end: bool,
        out: &mut Vec<u8>,
    ) -> Result<Option<(usize, bool)>> {
        let rest = &pending[from..];
        let mut cells = Vec::new();
        let Some(length) = self.record(rest, end, &mut cells)? else {
            return Ok(None);
        };
        let line = self.line();
        self.breaks += memchr::memchr_iter(b'\n', &rest[..length]).count() as u64;
        if rest[..length].trim_ascii().is_empty() {
            return Ok(Some((from + length, false)));
        }
        if self.as_cells {
            let text = std::str::from_utf8(&rest[..length]);
            text.map_err(|error| not_utf8(&rest[..length], error.valid_up_to(), line))?;
        }
        let cells = cells
            .into_iter()
            .enumerate()
            .map(|(column, cell)| {
                String::from_utf8(cell).map_err(|error| {
                    let at = error.utf8_error().valid_up_to();
                    Error::Argument(format!(
                        "row {}, line {line}: byte {at} (0x{:02x}) of cell {column} is not UTF-8; convert it to UTF-8: \
                         {ICONV}",
                        self.records,
                        error.as_bytes()[at]
                    ))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if self.as_cells {
            let ended = rest[..length].ends_with(b"\n");
            write_list(self.breaks + u64::from(!ended), &cells, out);
            self.records += 1;
            return Ok(Some((from + length, true)));
        }
        match &self.header {
            None => {
                self.header = Some(cells);
                Ok(Some((from + length, false)))
            }
            Some(header) if header.len() == cells.len() => {
                write_object(header, &cells, out);
                self.records += 1;
                Ok(Some((from + length, true)))
            }
            Some(header) => Err(Error::Argument(format!(
                "row {}, line {line}: a record must have {} cells as the header, got {} ({}); quote cells that hold \
                 the separator or a line break",
                self.records,
                header.len(),
                cells.len(),
                shorten(&cells.join(" | "))
            ))),
        }
    }

    /// The record's length with its line end, once that is there.
    fn record(&self, rest: &[u8], end: bool, cells: &mut Vec<Vec<u8>>) -> Result<Option<usize>> {
        let mut at = 0;
        if rest.is_empty() {
            return Ok(None);
        }
        loop {
            let quoted = rest.get(at) == Some(&b'"');
            let (cell, next) = if quoted {
                match self.quoted(rest, at + 1, end)? {
                    Some(found) => found,
                    None => return Ok(None),
                }
            } else {
                match memchr2(self.delimiter, b'\n', &rest[at..]) {
                    Some(found) => (rest[at..at + found].to_vec(), at + found),
                    None if end => (rest[at..].to_vec(), rest.len()),
                    None => return Ok(None),
                }
            };
            cells.push(cell);
            match rest.get(next) {
                Some(&byte) if byte == self.delimiter => at = next + 1,
                ended => {
                    if let Some(last) = cells
                        .last_mut()
                        .filter(|last| !quoted && last.ends_with(b"\r"))
                    {
                        last.pop(); // an unquoted last cell before CRLF
                    }
                    return Ok(Some(next + usize::from(ended.is_some())));
                }
            }
        }
    }

    /// A quoted cell from behind its quote: its text, and where the separator or the line end stands.
    fn quoted(&self, rest: &[u8], mut at: usize, end: bool) -> Result<Option<(Vec<u8>, usize)>> {
        let mut cell = Vec::new();
        let start = at;
        loop {
            let Some(found) = memchr(b'"', &rest[at..]) else {
                return if end {
                    Err(self.broken(rest, start, "a quote is opened here and never closed"))
                } else {
                    Ok(None)
                };
            };
            cell.extend_from_slice(&rest[at..at + found]);
            at += found + 1;
            match (rest.get(at), rest.get(at + 1)) {
                (Some(b'"'), _) => {
                    cell.push(b'"');
                    at += 1;
                }
                (Some(b'\n'), _) => return Ok(Some((cell, at))),
                (Some(&byte), _) if byte == self.delimiter => return Ok(Some((cell, at))),
                (None, _) if end => return Ok(Some((cell, at))),
                (None, _) | (Some(b'\r'), None) if !end => return Ok(None),
                (Some(b'\r'), Some(b'\n') | None) => return Ok(Some((cell, at + 1))),
                _ => {
                    return Err(self.broken(
                        rest,
                        at,
                        "a quote inside a quoted cell must be doubled",
                    ));
                }
            }
        }
    }

    fn broken(&self, rest: &[u8], at: usize, what: &str) -> Error {
        let line = self.line() + memchr::memchr_iter(b'\n', &rest[..at]).count() as u64;
        let shown = String::from_utf8_lossy(&rest[at.saturating_sub(20)..rest.len().min(at + 200)]);
        Error::Argument(format!(
            "row {}, line {line}: broken quotes: {what} ({})",
            self.records,
            shorten(&shown)
        ))
    }
}

/// Which byte of which line of the record is not UTF-8.
fn not_utf8(record: &[u8], at: usize, line: u64) -> Error {
    let before = &record[..at];
    let start = memchr::memrchr(b'\n', before).map_or(0, |end| end + 1);
    Error::Row {
        row: line as usize + memchr::memchr_iter(b'\n', before).count(),
        message: format!(
            "byte {} of the line (0x{:02x}) is not UTF-8; {ICONV}",
            at - start,
            record[at]
        ),
    }
}

fn write_list(line: u64, cells: &[String], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("[{line}").as_bytes());
    for cell in cells {
        out.push(b',');
        out.extend_from_slice(
            serde_json::Value::from(cell.as_str())
                .to_string()
                .as_bytes(),
        );
    }
    out.extend_from_slice(b"]\n");
}

fn write_object(header: &[String], cells: &[String], out: &mut Vec<u8>) {
    out.push(b'{');
    let mut first = true;
    for (name, cell) in header.iter().zip(cells) {
        let Some(value) = value(name, cell) else {
            continue;
        };
        if !first {
            out.push(b',');
        }
        first = false;
        out.extend_from_slice(
            serde_json::Value::from(name.as_str())
                .to_string()
                .as_bytes(),
        );
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(b"}\n");
}

/// A cell as JSON text. CSV has no types: what a text spells (a chat, a list, a number) is seen where it is read. An
/// empty cell is an empty text or, in fields that hold no text, nothing.
fn value(name: &str, cell: &str) -> Option<String> {
    (!cell.is_empty() || holds_text(name)).then(|| serde_json::Value::from(cell).to_string())
}
