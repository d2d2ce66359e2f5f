//! Rows of files whose responses are cut where they stand: order, numbers and everything else stay as written.

mod counts;
mod responses;
mod row;
mod shortening;
mod spelled;

use rayon::prelude::*;

use super::blocks::{BOM, Blocks, Layout, Limits, TextBlock};
use super::json::{self, ICONV, is_deeper};
use super::repeats::plain;
use super::schema::Format;
use crate::reject::Reject;
use crate::tokenize::Encoded;
use crate::truncate::Kept;
use crate::{Error, Result};

use counts::write_counts;
use responses::{Fields, Found, Response};
use row::{Row, record};
pub use shortening::Shortening;
use shortening::{is_same, kept, replace};
pub use spelled::shorten_chat;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Lines,
    Array,
    Csv { delimiter: u8 },
}

/// Cuts the responses of a text file, whose bytes come in pieces. Errors begin with what follows the file's name.
pub struct Cutter {
    layout: Layout,
    written: Written,
    fields: Fields,
    seen: Vec<bool>,
    blocks: Blocks,
    started: bool,
    /// Of CSV: the columns, those at the end that the result has more, and how many the file has.
    header: Option<(Vec<String>, usize)>,
    rows: u64,
    same: u64,
}

/// A row after the cut.
struct Line {
    text: String,
    /// Which of the fields it has.
    seen: Vec<bool>,
    /// The cut has made a pair's sides the same.
    same: bool,
}

/// Bytes and number of rows that are cut together.
const BLOCK: (usize, u64) = (4 << 20, 4096);
/// Levels of a row; readers of deeper ones give up.
const DEEPEST: usize = 512;

impl Cutter {
    /// Of rows of a format, or of those with the named fields (without either chosen and rejected).
    pub fn new(
        format: Option<Format>,
        named: Option<Vec<String>>,
        layout: Layout,
        written: Written,
        row_bytes: usize,
    ) -> Self {
        let fields = Fields::new(format, named);
        let limits = Limits {
            bytes: BLOCK.0,
            rows: BLOCK.1,
            row_bytes,
        };
        Self {
            layout,
            written,
            seen: vec![false; fields.books.len()],
            fields,
            blocks: Blocks::new(layout, limits),
            started: false,
            header: None,
            rows: 0,
            same: 0,
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Pairs that the cut has made the same.
    pub fn same(&self) -> u64 {
        self.same
    }

    /// A field that was to be cut and is in no row; of candidates one is enough.
    pub fn missing(&self) -> Option<&str> {
        if self.fields.is_any && self.seen.contains(&true) {
            return None;
        }
        let missing = self.seen.iter().position(|seen| !seen)?;
        Some(&self.fields.books[missing])
    }

    /// What is to be written after this piece.
    pub fn push(&mut self, piece: &[u8], how: &Shortening) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        if !self.started && self.layout == Layout::Lines && self.written == Written::Lines {
            out.extend_from_slice(if piece.starts_with(BOM) { BOM } else { b"" });
        }
        self.started = true;
        for block in self.blocks.push(piece).map_err(broken)? {
            self.cut_block(&block, how, &mut out)?;
        }
        Ok(out)
    }

    /// What is to be written at the end.
    pub fn finish(&mut self, how: &Shortening) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for block in self.blocks.finish().map_err(broken)? {
            self.cut_block(&block, how, &mut out)?;
        }
        if self.written == Written::Array {
            out.extend_from_slice(b"\n]\n");
        }
        Ok(out)
    }

    fn cut_block(&mut self, block: &TextBlock, how: &Shortening, out: &mut Vec<u8>) -> Result<()> {
        let mut rows = json::lines(&block.data);
        if matches!(self.layout, Layout::Records { .. }) && self.header.is_none() {
            let (row, _) = rows.remove(0);
            self.read_header(row, out)?;
        }
        let first = self.rows;
        let done: Vec<Result<Line>> = rows
            .par_iter()
            .enumerate()
            .map_init(Encoded::default, |tokens, (index, &(row, line))| {
                let place = match self.layout {
                    Layout::Lines => format!("line {}", block.first_line + line),
                    _ => format!("row {}", first + index as u64),
                };
                self.cut_row(row, &place, how, tokens)
            })
            .collect();
        for line in done {
            let Line { text, seen, same } = line?;
            self.write(&text, out);
            self.rows += 1;
            self.same += u64::from(same);
            for (all, seen) in self.seen.iter_mut().zip(seen) {
                *all |= seen;
            }
        }
        Ok(())
    }

    /// Typed rows, each as a JSON object, after the cut; and how many pairs it has made the same.
    pub fn cut_rows(&self, rows: &[&[u8]], how: &Shortening) -> Result<(Vec<String>, u64)> {
        let done: Vec<Result<Line>> = rows
            .par_iter()
            .map_init(Encoded::default, |tokens, row| {
                self.cut_row(row, "a row", how, tokens)
            })
            .collect();
        let mut lines = Vec::with_capacity(rows.len());
        let mut same = 0;
        for line in done {
            let line = line?;
            same += u64::from(line.same);
            lines.push(line.text);
        }
        Ok((lines, same))
    }

    fn write(&self, line: &str, out: &mut Vec<u8>) {
        if self.written == Written::Array {
            out.extend_from_slice(if self.rows > 0 { b",\n" } else { b"[\n" });
            out.extend_from_slice(line.trim().as_bytes());
        } else {
            out.extend_from_slice(line.as_bytes());
            out.push(b'\n');
        }
    }

    fn delimiter(&self) -> u8 {
        match self.written {
            Written::Csv { delimiter } => delimiter,
            _ => b',',
        }
    }

    /// Write the columns of CSV, with those that say what was cut at the end, unless they are there.
    fn read_header(&mut self, row: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let (_, mut columns) = cells_of(row)?;
        let width = columns.len();
        for book in &self.fields.books {
            if self.fields.is_pair() || columns[..width].contains(book) {
                for name in [format!("{book}_cut"), format!("{book}_complete")] {
                    if !columns.contains(&name) {
                        columns.push(name);
                    }
                }
            }
        }
        out.extend_from_slice(record(&columns, self.delimiter()).as_bytes());
        out.push(b'\n');
        self.header = Some((columns, width));
        Ok(())
    }

    fn cut_row(
        &self,
        row: &[u8],
        place: &str,
        how: &Shortening,
        tokens: &mut Encoded,
    ) -> Result<Line> {
        if let Some((columns, width)) = &self.header {
            let (line, cells) = cells_of(row)?;
            let place = format!("line {line}");
            if cells.len() != *width {
                return Err(Error::Argument(format!(
                    ", {place}: a record must have {width} cells as the header, got {}; quote cells that hold the \
                     separator or a line break",
                    cells.len()
                )));
            }
            return self.cut(Row::of_record(columns, &cells), &place, how, tokens);
        }
        let (text, fields) = parse(row).map_err(|what| in_row(place, &what))?;
        self.check_once(&fields)
            .map_err(|reject| in_row(place, &format!(": {}; {}", reject.rule, reject.remedy)))?;
        self.cut(Row::of_json(text, fields), place, how, tokens)
    }

    /// A field that is read must be there once; others stay as they are written.
    fn check_once(&self, fields: &json::Fields) -> std::result::Result<(), Reject> {
        if fields.check_once("").is_ok() {
            return Ok(());
        }
        let all = fields.0.iter();
        let read = all.filter(|(name, _)| self.fields.reads(plain(name)));
        json::Fields(read.cloned().collect()).check_once("")
    }

    fn cut(
        &self,
        mut row: Row,
        place: &str,
        how: &Shortening,
        tokens: &mut Encoded,
    ) -> Result<Line> {
        let Found { responses, sides } = self
            .fields
            .find(&row)
            .map_err(|what| in_row(place, &what))?;
        let kept = kept(&responses, how, tokens)?;
        for (response, kept) in responses.iter().zip(&kept) {
            if kept.cut > 0 {
                replace(&mut row, response, kept.kept);
            }
        }
        let same = is_same(&row, &responses, &kept, sides.as_ref());
        let mut seen = Vec::with_capacity(self.fields.books.len());
        for book in &self.fields.books {
            let of_book = |(response, _): &(&Response, &Kept)| response.book == book;
            let cuts: Vec<(bool, usize)> = responses
                .iter()
                .zip(&kept)
                .filter(of_book)
                .map(|(response, kept)| (response.nested, kept.cut))
                .collect();
            seen.push(!cuts.is_empty());
            if !cuts.is_empty() {
                write_counts(&mut row, book, &cuts, how.ended)
                    .map_err(|what| in_row(place, &what))?;
            }
        }
        Ok(Line {
            text: row.line(self.delimiter()),
            seen,
            same,
        })
    }
}

fn in_row(place: &str, what: &str) -> Error {
    Error::Argument(format!(", {place}{what}"))
}

/// What is wrong with a line, or with the file as a whole.
#[allow(clippy::needless_pass_by_value)] // the form that `map_err` calls
fn broken(error: Error) -> Error {
    Error::Argument(match error {
        Error::Row { row, message } => format!(", line {row}: {message}"),
        Error::Argument(_) => format!(": {error}; mend the file"),
    })
}

/// A row's JSON object.
fn parse(row: &[u8]) -> std::result::Result<(&str, json::Fields<'_>), String> {
    let text = simdutf8::compat::from_utf8(row).map_err(|error| {
        let at = error.valid_up_to();
        format!(
            ": byte {at} of the line (0x{:02x}) is not UTF-8; {ICONV}",
            row[at]
        )
    })?;
    let fields = json::Fields::parse(text).map_err(|error| {
        let is_value = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        let what = if is_value {
            "a row must be an object {…}".to_owned()
        } else {
            json::describe(&error, text)
        };
        format!(": broken JSON: {what}; mend the line")
    })?;
    if is_deeper(text, DEEPEST) {
        return Err(
            ": a row is nested too deep; flatten the value, or write it as text".to_owned(),
        );
    }
    Ok((text, fields))
}

/// The line and the cells of a record, which stands as [line, cell, …].
fn cells_of(row: &[u8]) -> Result<(u64, Vec<String>)> {
    let values = serde_json::from_slice::<Vec<serde_json::Value>>(row);
    let mut values = values
        .map_err(|error| broken(Error::Argument(error.to_string())))?
        .into_iter();
    let line = values.next().and_then(|line| line.as_u64()).unwrap_or(0);
    let cell = |value| match value {
        serde_json::Value::String(cell) => cell,
        other => other.to_string(),
    };
    Ok((line, values.map(cell).collect()))
}

#[cfg(test)]
mod tests;
