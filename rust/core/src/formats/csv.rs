//! CSV records, one after the other, as JSON lines: objects by the header, or lists of cells.

use super::json::ICONV;
use super::repeats::{plain, repeated, twice};
use super::table::holds_text;
use crate::reject::shorten;
use crate::{Error, Result};
use memchr::{memchr, memchr2};

/// Cells of a record; no table of people's data is so wide, and each costs far more than its separator.
const MOST_CELLS: usize = 10_000;
/// Bytes of a column's name, which every row is written with.
const MOST_NAME: usize = 1024;

/// Quotes stand around whole cells and are doubled inside them (RFC 4180); LF or CRLF ends a record.
pub struct Csv {
    delimiter: u8,
    as_cells: bool,
    breaks: u64,
    header: Option<Vec<String>>,
    records: u64,
    begun: Begun,
    /// Bytes looked at in search of the ends of cells.
    #[cfg(test)]
    pub work: usize,
}

/// What is known of a record whose end has not arrived: no byte of it is looked at again.
#[derive(Default)]
struct Begun {
    cells: Vec<Vec<u8>>,
    /// Where the cell at hand begins, and how far it was looked at, in bytes from the record's start.
    start: usize,
    looked: usize,
    /// What has been read of a quoted cell.
    quoted: Option<Vec<u8>>,
}

/// What became of a cell.
enum Cell {
    /// Its separator or line end stands at this place.
    Ended(usize),
    Unfinished,
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
            begun: Begun::default(),
            #[cfg(test)]
            work: 0,
        }
    }

    #[cfg(test)]
    fn count_work(&mut self, bytes: usize) {
        self.work += bytes;
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self)]
    fn count_work(&mut self, _: usize) {}

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
        let blank = self.blank_lines(rest);
        if blank > 0 {
            return Ok(Some((from + blank, false)));
        }
        let Some(length) = self.record(rest, end)? else {
            return Ok(None);
        };
        let cells = std::mem::take(&mut self.begun).cells;
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
            if self.records == 0 {
                check_header(&cells, line)?;
            }
            let ended = rest[..length].ends_with(b"\n");
            write_list(self.breaks + u64::from(!ended), &cells, out);
            self.records += 1;
            return Ok(Some((from + length, true)));
        }
        match &self.header {
            None => {
                if let Some(long) = cells.iter().find(|name| name.len() > MOST_NAME) {
                    return Err(Error::Argument(format!(
                        "line {line}: the name of a column must have at most {MOST_NAME} bytes, got {} ({}); is the \
                         header missing? The first line of a CSV file names the fields",
                        long.len(),
                        shorten(long)
                    )));
                }
                check_header(&cells, line)?;
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

    /// Bytes of the blank lines that stand here; their breaks are counted.
    fn blank_lines(&mut self, rest: &[u8]) -> usize {
        if self.begun.looked > 0 || !self.begun.cells.is_empty() {
            return 0;
        }
        let blank = rest.iter().take_while(|byte| byte.is_ascii_whitespace());
        let length = blank.count();
        let length = memchr::memrchr(b'\n', &rest[..length]).map_or(0, |last| last + 1);
        self.breaks += memchr::memchr_iter(b'\n', &rest[..length]).count() as u64;
        length
    }

    /// The record's length with its line end, once that is there; its cells are then whole in `begun`.
    fn record(&mut self, rest: &[u8], end: bool) -> Result<Option<usize>> {
        if rest.is_empty() {
            return Ok(None);
        }
        loop {
            let quoted = rest.get(self.begun.start) == Some(&b'"');
            let cell = if quoted {
                self.quoted(rest, end)?
            } else {
                self.plain(rest, end)
            };
            let Cell::Ended(next) = cell else {
                return Ok(None);
            };
            if self.begun.cells.len() > MOST_CELLS {
                return Err(Error::Argument(format!(
                    "row {}, line {}: a record must have at most {MOST_CELLS} cells; keep those you need",
                    self.records,
                    self.line()
                )));
            }
            match rest.get(next) {
                Some(&byte) if byte == self.delimiter => {
                    self.begun.start = next + 1;
                    self.begun.looked = next + 1;
                }
                ended => {
                    let last = self.begun.cells.last_mut();
                    if let Some(last) = last.filter(|last| !quoted && last.ends_with(b"\r")) {
                        last.pop(); // an unquoted last cell before CRLF
                    }
                    return Ok(Some(next + usize::from(ended.is_some())));
                }
            }
        }
    }

    /// A cell without quotes.
    fn plain(&mut self, rest: &[u8], end: bool) -> Cell {
        let looked = self.begun.looked;
        let found = memchr2(self.delimiter, b'\n', &rest[looked..]);
        let next = found.map_or(rest.len(), |found| looked + found);
        self.count_work(next - looked);
        if found.is_none() && !end {
            self.begun.looked = next;
            return Cell::Unfinished;
        }
        let begun = &mut self.begun;
        begun.cells.push(rest[begun.start..next].to_vec());
        Cell::Ended(next)
    }

    /// A quoted cell.
    fn quoted(&mut self, rest: &[u8], end: bool) -> Result<Cell> {
        let start = self.begun.start + 1;
        let mut cell = self.begun.quoted.take().unwrap_or_default();
        let mut at = self.begun.looked.max(start);
        loop {
            let found = memchr(b'"', &rest[at..]);
            let quote = found.map_or(rest.len(), |found| at + found);
            cell.extend_from_slice(&rest[at..quote]);
            self.count_work(quote - at);
            at = quote + 1;
            let next = match (rest.get(quote), rest.get(at), rest.get(at + 1)) {
                (None, ..) if end => {
                    let what = "a quote is opened here and never closed";
                    return Err(self.broken(rest, start, what));
                }
                (_, Some(b'"'), _) => {
                    cell.push(b'"');
                    at += 1;
                    continue;
                }
                (_, Some(b'\n'), _) => at,
                (_, Some(&byte), _) if byte == self.delimiter => at,
                (_, None, _) if end => at,
                (_, None, _) | (_, Some(b'\r'), None) if !end => {
                    self.begun.quoted = Some(cell);
                    self.begun.looked = quote;
                    return Ok(Cell::Unfinished);
                }
                (_, Some(b'\r'), Some(b'\n') | None) => at + 1,
                _ => {
                    let what = "a quote inside a quoted cell must be doubled";
                    return Err(self.broken(rest, at, what));
                }
            };
            self.begun.cells.push(cell);
            return Ok(Cell::Ended(next));
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

/// Columns must be told apart; those without a name are passed over as long as they are empty.
fn check_header(names: &[String], line: u64) -> Result<()> {
    let columns = names.iter().map(String::as_str);
    let columns: Vec<&str> = columns.filter(|name| !plain(name).is_empty()).collect();
    match repeated(&columns, |name| name) {
        None => Ok(()),
        Some([first, second]) => Err(Error::Argument(format!(
            "line {line}: {}; name each column once",
            twice("column", [first, second])
        ))),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of a text that comes in pieces, and the bytes that were looked at.
    fn records(text: &[u8], piece: usize) -> Result<(String, usize)> {
        let (mut csv, mut out, mut pending) = (Csv::cells(b','), Vec::new(), Vec::new());
        let mut used = 0;
        for end in [false, true] {
            for part in if end {
                [].chunks(1)
            } else {
                text.chunks(piece)
            }
            .chain([&[][..]])
            {
                pending.extend_from_slice(part);
                while let Some((next, _)) = csv.next_row(&pending, used, end, &mut out)? {
                    used = next;
                }
            }
        }
        Ok((String::from_utf8(out).expect("UTF-8"), csv.work))
    }

    #[test]
    fn pieces_do_not_matter_and_no_byte_is_looked_at_twice() {
        let text = "a,\"b\"\"\n,c\"\r\n\n  \n\"\",\"d\"\nplain and long,e\r\n,\n\"last\"";
        let whole = records(text.as_bytes(), text.len()).expect("records");
        assert_eq!(
            whole.0,
            "[2,\"a\",\"b\\\"\\n,c\"]\n[5,\"\",\"d\"]\n[6,\"plain and long\",\"e\"]\n[7,\"\",\"\"]\n[8,\"last\"]\n"
        );
        for piece in 1..text.len() {
            assert_eq!(
                records(text.as_bytes(), piece).expect("records").0,
                whole.0,
                "{piece}"
            );
        }
        let long = format!("a,\"{}\"\n{},b\n", "q".repeat(5000), "p".repeat(5000));
        let (_, work) = records(long.as_bytes(), 10).expect("records");
        assert!(work <= long.len(), "{work} bytes of {}", long.len());
    }

    #[test]
    fn blank_lines_are_passed_over_and_counted() {
        let text = format!("{}a,b\n", "\n \r\n".repeat(1000));
        let (found, work) = records(text.as_bytes(), 64).expect("records");
        assert_eq!(found, "[2001,\"a\",\"b\"]\n");
        assert!(work < 100, "{work}");
    }

    #[test]
    fn a_column_that_is_there_twice_is_named() {
        let read = |header: &str| {
            let text = format!("{header}\n1,2,3\n");
            let cells = records(text.as_bytes(), 64).err();
            let objects = Csv::objects(b',').next_row(text.as_bytes(), 0, true, &mut Vec::new());
            assert_eq!(cells, objects.err());
            cells.map(|error| error.to_string())
        };
        let rule = "; name each column once";
        assert_eq!(
            read("a,b,a"),
            Some(format!("line 1: column 'a' is there more than once{rule}"))
        );
        assert_eq!(
            read("a,b, \u{feff}a"),
            Some(format!(
                "line 1: columns 'a' and ' \u{feff}a' differ in nothing but space{rule}"
            ))
        );
        assert_eq!(read("a,,"), None);
    }

    #[test]
    fn records_of_too_many_cells_and_long_names_are_refused() {
        let wide = ",".repeat(MOST_CELLS);
        let error = records(wide.as_bytes(), 1 << 20).expect_err("an error");
        assert_eq!(
            error.to_string(),
            "row 0, line 1: a record must have at most 10000 cells; keep those you need"
        );
        assert!(records(&wide.as_bytes()[1..], 1 << 20).is_ok());
        let name = format!("{}\n1\n", "n".repeat(MOST_NAME + 1));
        let error = Csv::objects(b',').next_row(name.as_bytes(), 0, true, &mut Vec::new());
        let error = error.expect_err("an error").to_string();
        assert!(
            error
                .starts_with("line 1: the name of a column must have at most 1024 bytes, got 1025"),
            "{error}"
        );
    }
}
