//! Text files cut into blocks of JSON lines as their bytes arrive: the blocks depend on the content alone, never on
//! the sizes of the pieces in which it came.

use memchr::memchr;

use super::array::Array;
use super::csv::Csv;
use crate::{Error, Result};

/// How the rows of a text file are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Every line that is not blank is a row, whatever it holds.
    Lines,
    /// Every element of one JSON array is a row.
    Array,
    /// Every record after the header is a row; its cells become the fields of a JSON object.
    Csv { delimiter: u8 },
    /// Every record, the header too, is a row: the JSON list of the line on which it ends and of its cells.
    Records { delimiter: u8 },
}

/// When a block is full; it then ends with the row at hand.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub bytes: usize,
    pub rows: u64,
    /// A longer row is an error: something else than its end is missing.
    pub row_bytes: usize,
}

/// Rows as JSON lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextBlock {
    pub data: Vec<u8>,
    pub rows: u64,
    /// The line (from 1) of the file on which the block begins.
    pub first_line: u64,
}

/// Cuts a text into blocks.
///
/// ```
/// use pyprefopt_core::formats::{Blocks, Layout, Limits};
/// let mut blocks = Blocks::new(Layout::Lines, Limits { bytes: 1 << 24, rows: 2, row_bytes: 1 << 28 });
/// let full = blocks.push(b"{}\n\n{}\n{").unwrap();
/// assert_eq!((full[0].rows, full[0].data.as_slice()), (2, &b"{}\n\n{}\n"[..]));
/// blocks.push(b"}").unwrap();
/// assert_eq!(blocks.finish().unwrap()[0].first_line, 4);
/// ```
pub struct Blocks {
    scanner: Scanner,
    limits: Limits,
    started: bool,
    /// What has arrived and is in no row yet.
    pending: Vec<u8>,
    block: TextBlock,
}

enum Scanner {
    Lines(Lines),
    Array(Array),
    Csv(Csv),
}

/// Lines so far, and the one that has not ended.
#[derive(Default)]
struct Lines {
    ended: u64,
    bytes: usize,
    written: bool, // more than spaces stand in it
}

impl Lines {
    fn grow(&mut self, more: &[u8]) {
        self.bytes += more.len();
        self.written = self.written || !more.trim_ascii_start().is_empty();
    }
}

/// A piece of so many bytes comes from a file that may fill blocks.
const LARGE: usize = 1 << 18;
pub const BOM: &[u8] = b"\xef\xbb\xbf";

impl Blocks {
    pub fn new(layout: Layout, limits: Limits) -> Self {
        let scanner = match layout {
            Layout::Lines => Scanner::Lines(Lines::default()),
            Layout::Array => Scanner::Array(Array::default()),
            Layout::Csv { delimiter } => Scanner::Csv(Csv::objects(delimiter)),
            Layout::Records { delimiter } => Scanner::Csv(Csv::cells(delimiter)),
        };
        Self {
            scanner,
            limits,
            started: false,
            pending: Vec::new(),
            block: TextBlock {
                first_line: 1,
                ..TextBlock::default()
            },
        }
    }

    /// The blocks that are full with this piece.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<TextBlock>> {
        if self.block.data.is_empty() && piece.len() >= LARGE {
            // The pages of a block are touched once: a buffer that grows is copied again and again.
            self.block.data.reserve(self.limits.bytes + piece.len());
        }
        let mut full = Vec::new();
        if self.started && matches!(self.scanner, Scanner::Lines(_)) {
            self.push_lines(piece, &mut full);
        } else {
            self.pending.extend_from_slice(piece);
            if !self.started && self.pending.len() < BOM.len() {
                return Ok(full);
            }
            self.scan(&mut full, false)?;
        }
        if self.unfinished() > self.limits.row_bytes {
            return Err(Error::Argument(format!(
                "the row at line {} is longer than {} MiB; its end is missing, or it must be split",
                self.line(),
                self.limits.row_bytes >> 20
            )));
        }
        Ok(full)
    }

    /// The last block, if any; fails where the text ends in the middle of an array or of a quoted cell.
    pub fn finish(&mut self) -> Result<Vec<TextBlock>> {
        let mut full = Vec::new();
        self.scan(&mut full, true)?;
        let block = std::mem::take(&mut self.block);
        full.extend((block.rows > 0).then_some(block));
        Ok(full)
    }

    fn start(&mut self) -> Result<()> {
        self.started = true;
        if self.pending.starts_with(BOM) {
            self.pending.drain(..BOM.len());
        } else if self.pending.starts_with(b"\xff\xfe") || self.pending.starts_with(b"\xfe\xff") {
            return Err(Error::Argument(
                "the file is UTF-16 (its first two bytes say so); save it as UTF-8".into(),
            ));
        }
        Ok(())
    }

    /// The line on which the next row begins.
    fn line(&self) -> u64 {
        match &self.scanner {
            Scanner::Lines(lines) => lines.ended + 1,
            Scanner::Array(array) => array.line(),
            Scanner::Csv(csv) => csv.line(),
        }
    }

    /// Bytes of the row that has not ended yet.
    fn unfinished(&self) -> usize {
        match &self.scanner {
            Scanner::Lines(lines) => lines.bytes,
            _ => self.pending.len(),
        }
    }

    /// Copy the piece into the block, as a whole where the block does not end in it.
    fn push_lines(&mut self, piece: &[u8], full: &mut Vec<TextBlock>) {
        let mut copied = 0;
        let mut from = 0;
        while let Some(length) = memchr(b'\n', &piece[from..]) {
            let held = self.block.data.len() + from - copied;
            if length == 0 && self.pass_empty_lines(&piece[from..], &mut from, held) {
                continue;
            }
            let row = &piece[from..=from + length];
            from += row.len();
            self.block.rows += self.end_line(row);
            let bytes = self.block.data.len() + from - copied;
            if bytes >= self.limits.bytes || self.block.rows >= self.limits.rows {
                self.block.data.extend_from_slice(&piece[copied..from]);
                copied = from;
                self.end_block(full);
            }
        }
        self.block.data.extend_from_slice(&piece[copied..]);
        if let Scanner::Lines(lines) = &mut self.scanner {
            lines.grow(&piece[from..]);
        }
    }

    /// Pass over the line breaks that stand here, where a line begins, but the last one and those that would fill the
    /// block, which `held` bytes are of; whether there were any.
    fn pass_empty_lines(&mut self, rest: &[u8], from: &mut usize, held: usize) -> bool {
        let Scanner::Lines(lines) = &mut self.scanner else {
            return false;
        };
        let breaks = rest.iter().take_while(|&&byte| byte == b'\n').count();
        let room = self.limits.bytes.saturating_sub(held + 1);
        let passed = breaks.saturating_sub(1).min(room);
        if lines.bytes > 0 || passed == 0 {
            return false;
        }
        lines.ended += passed as u64;
        *from += passed;
        true
    }

    /// How many rows end with this end of a line.
    fn end_line(&mut self, end: &[u8]) -> u64 {
        let Scanner::Lines(lines) = &mut self.scanner else {
            return 0;
        };
        lines.grow(end);
        let ended = lines.ended + 1;
        let row = std::mem::replace(
            lines,
            Lines {
                ended,
                ..Lines::default()
            },
        );
        u64::from(row.written)
    }

    fn end_block(&mut self, full: &mut Vec<TextBlock>) {
        let fresh = TextBlock {
            first_line: self.line(),
            ..TextBlock::default()
        };
        let block = std::mem::replace(&mut self.block, fresh);
        full.extend((block.rows > 0).then_some(block));
    }

    /// Move every whole row from `pending` into the block; at the `end` of the text the rest is a row too.
    fn scan(&mut self, full: &mut Vec<TextBlock>, end: bool) -> Result<()> {
        if !self.started {
            self.start()?;
        }
        let mut pending = std::mem::take(&mut self.pending);
        if matches!(self.scanner, Scanner::Lines(_)) {
            self.push_lines(&pending, full);
            self.block.rows += if end { self.end_line(b"") } else { 0 };
            return Ok(());
        }
        let mut used = 0;
        while let Some((next, row)) = self.next_row(&mut pending, used, end)? {
            used = next;
            self.block.rows += u64::from(row);
            if self.block.data.len() >= self.limits.bytes || self.block.rows >= self.limits.rows {
                self.end_block(full);
            }
        }
        pending.drain(..used);
        self.pending = pending;
        Ok(())
    }

    /// Append the next row to the block: where it ends in `pending`, and whether it was one (a blank line is none).
    fn next_row(
        &mut self,
        pending: &mut [u8],
        from: usize,
        end: bool,
    ) -> Result<Option<(usize, bool)>> {
        let out = &mut self.block.data;
        match &mut self.scanner {
            Scanner::Lines(_) => Ok(None), // they are copied by the piece
            Scanner::Array(array) => array.next_row(pending, from, end, out),
            Scanner::Csv(csv) => csv.next_row(pending, from, end, out),
        }
    }
}
