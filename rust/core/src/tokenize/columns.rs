//! The segments table as flat columns, one chunk of rows at a time.

use super::chat::Parts;
use super::row::Reject;

/// Lines of the segments table, prompt first, then its responses; lists lie end to end with their lengths in `lengths`.
#[derive(Debug, Default, Clone, PartialEq)]
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
    pub rejects: Vec<(u64, Reject)>,
    pub responses_cut: usize,
    pub apart: Vec<u64>, // rows in which a token lay across the boundary of prompt and response
    pub without_bos: usize, // rows whose prompt begins without the tokenizer's BOS
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

    /// Append tokens; those behind `parts.stop` are left out. `shift`: bytes of the text before that which `offsets` count in.
    pub(super) fn push_tokens(
        &mut self,
        ids: &[u32],
        offsets: &[(u32, u32)],
        shift: usize,
        parts: &Parts,
        assistant: bool,
    ) {
        let (origin, last, lead) = match &parts.content {
            Some(content) => (content.range.start, content.range.end, content.lead),
            None => (usize::MAX, usize::MAX, 0),
        };
        let mut turn = 0;
        for (&id, &(start, end)) in ids.iter().zip(offsets) {
            let (start, end) = (start as usize + shift, end as usize + shift);
            if start >= parts.stop {
                break;
            }
            let inside = end > origin && start < last;
            let at = |byte: usize| (byte.clamp(origin, last) - origin + lead) as u32;
            self.ids.push(id);
            self.inside.push(inside);
            self.starts.push(if inside { at(start) } else { 0 });
            self.ends.push(if inside { at(end) } else { 0 });
            let written = || parts.written.iter().any(|r| end > r.start && start < r.end);
            self.mask
                .push(assistant && (inside || start >= last || written()));
            while parts.turns.get(turn).is_some_and(|end| *end <= start) {
                turn += 1;
            }
            self.turns.push((parts.first_turn + turn) as u16);
        }
    }
}
