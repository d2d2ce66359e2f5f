//! The segments table as flat columns, one chunk of rows at a time.

use std::mem::take;

use super::chat::Recent;
use super::coverage::Coverage;
use super::texts::{Notes, Parts, Texts};
use super::tokens::RowTokens;
use crate::reject::Reject;

/// Lines of the segments table, prompt first, then its responses; lists lie end to end with their lengths in `lengths`.
/// All of them are of one template.
#[derive(Default)]
pub struct Columns {
    pub rows: Vec<u64>,
    pub numbers: Vec<u16>,
    pub kinds: Vec<&'static str>,
    pub scores: Vec<Option<f32>>,
    pub cuts: Vec<u32>,      // content tokens left out
    pub lengths: Vec<usize>, // tokens
    pub ids: Vec<u32>,
    pub mask: Vec<bool>,   // written by the assistant
    pub inside: Vec<bool>, // within the last message's content: `starts` and `ends` hold
    pub starts: Vec<u32>,  // bytes in the last message's content
    pub ends: Vec<u32>,
    pub turns: Vec<u16>, // message of the chat
    pub lean: bool,      // `starts`, `ends` and `turns` are left empty
    pub rejects: Vec<(u64, Reject)>,
    pub responses_cut: usize,
    pub apart: Vec<u64>, // rows in which a token lay across the boundary of prompt and response
    pub without_bos: usize, // rows whose prompt begins without the tokenizer's BOS
    pub notes: Notes,
    pub coverage: Coverage, // of the responses' texts by their tokens
    pub(super) scratch: Scratch,
}

/// What a row needs on its way, kept for the next row.
#[derive(Default)]
pub(super) struct Scratch {
    pub shapes: Recent,
    pub texts: Texts,
    pub tokens: RowTokens,
}

/// What a line is about.
pub(super) struct Head {
    pub row: u64,
    pub number: u16,
    pub kind: &'static str,
    pub score: Option<f32>,
    pub cut: u32,
}

impl Columns {
    /// No lines yet; without `offsets`, none of them will have `starts`, `ends` and `turns`.
    pub fn new(offsets: bool) -> Self {
        Self {
            lean: !offsets,
            ..Self::default()
        }
    }

    /// Take what is said of the rows, not the lines.
    #[must_use]
    pub fn take_counts(&mut self) -> Self {
        Self {
            rejects: take(&mut self.rejects),
            apart: take(&mut self.apart),
            responses_cut: take(&mut self.responses_cut),
            without_bos: take(&mut self.without_bos),
            notes: take(&mut self.notes),
            coverage: take(&mut self.coverage),
            ..Self::default()
        }
    }

    /// Leave out all lines; the room that they took stays for the next.
    pub fn clear_lines(&mut self) {
        self.truncate(0, 0);
    }

    /// Leave out the lines from `line` on and the tokens from `token` on.
    pub(super) fn truncate(&mut self, line: usize, token: usize) {
        self.rows.truncate(line);
        self.numbers.truncate(line);
        self.kinds.truncate(line);
        self.scores.truncate(line);
        self.cuts.truncate(line);
        self.lengths.truncate(line);
        self.truncate_tokens(token);
    }

    /// Leave out the tokens from `token` on, of a line that has not ended yet.
    pub(super) fn truncate_tokens(&mut self, token: usize) {
        self.ids.truncate(token);
        self.mask.truncate(token);
        self.inside.truncate(token);
        self.starts.truncate(token);
        self.ends.truncate(token);
        self.turns.truncate(token);
    }

    /// End the line that began with token `first`.
    pub(super) fn end_line(&mut self, head: &Head, first: usize) {
        self.rows.push(head.row);
        self.numbers.push(head.number);
        self.kinds.push(head.kind);
        self.scores.push(head.score);
        self.cuts.push(head.cut);
        self.lengths.push(self.ids.len() - first);
    }

    /// Append a prompt's tokens to lines that do not say where they stand.
    pub(super) fn push_placeless(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.inside.resize(self.ids.len(), false);
        self.mask.resize(self.ids.len(), false);
    }

    /// Append tokens; those behind `parts.stop` are left out, or (`whole`) not counted as written. `shift`: bytes of the
    /// text before that which `offsets` count in.
    pub(super) fn push_tokens(
        &mut self,
        ids: &[u32],
        offsets: &[(u32, u32)],
        shift: usize,
        parts: &Parts,
        assistant: bool,
        whole: bool,
    ) {
        let starts = |limit: usize| offsets.partition_point(|at| at.0 as usize + shift < limit);
        let written = starts(parts.stop);
        let count = if whole { ids.len() } else { written };
        let (ids, offsets) = (&ids[..count], &offsets[..count]);
        let behind = |limit: usize| offsets.partition_point(|at| at.1 as usize + shift <= limit);
        let (from, to) = match &parts.content {
            None => (count, count),
            Some(content) => {
                let from = behind(content.range.start);
                (from, starts(content.range.end).min(count).max(from))
            }
        };
        let first = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.inside.resize(first + from, false);
        self.inside.resize(first + to, true);
        self.inside.resize(first + count, false);
        if assistant {
            self.mask
                .resize(first + behind(parts.scored).min(written), false);
            self.mask.resize(first + written, true);
            for range in &parts.written {
                let written = behind(range.start)..starts(range.end).min(written);
                if let Some(mask) = self.mask[first..].get_mut(written) {
                    mask.fill(true);
                }
            }
        }
        self.mask.resize(first + count, false);
        if !self.lean {
            self.push_places(&offsets[from..to], shift, parts, from, count);
            self.push_turns(parts, count, starts);
        }
    }

    /// Where the content's tokens, `from` and on of `count`, stand in the content.
    fn push_places(
        &mut self,
        inside: &[(u32, u32)],
        shift: usize,
        parts: &Parts,
        from: usize,
        count: usize,
    ) {
        let (first, last) = (self.starts.len(), self.starts.len() + count);
        self.starts.resize(first + from, 0);
        self.ends.resize(first + from, 0);
        if let Some(content) = &parts.content {
            if content.breaks.is_empty() {
                let (start, end) = (content.range.start, content.range.end);
                let place = |byte: u32| {
                    ((byte as usize + shift).clamp(start, end) - start + content.lead) as u32
                };
                self.starts.extend(inside.iter().map(|at| place(at.0)));
                self.ends.extend(inside.iter().map(|at| place(at.1)));
            } else {
                let place = |byte: u32| content.content_byte(byte as usize + shift) as u32;
                self.starts.extend(inside.iter().map(|at| place(at.0)));
                self.ends.extend(inside.iter().map(|at| place(at.1)));
            }
        }
        self.starts.resize(last, 0);
        self.ends.resize(last, 0);
    }

    /// The message of each of `count` tokens; `starts` counts those that begin before a byte.
    fn push_turns(&mut self, parts: &Parts, count: usize, starts: impl Fn(usize) -> usize) {
        let first = self.turns.len();
        let mut turn = parts.first_turn as u16;
        for &end in &parts.turns {
            let until = first + starts(end).min(count);
            self.turns.resize(until.max(self.turns.len()), turn);
            turn += 1;
        }
        self.turns.resize(first + count, turn);
    }
}
