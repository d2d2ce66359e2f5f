//! A prompt with its responses: what a method may look at of it, and what it costs in a batch.

use crate::select::Bits;
use crate::{Error, Result};

/// Names of the optional per-token values, in the order of `Response::values`.
pub const VALUES: [&str; 3] = ["token_rewards", "user_weights", "ref_logps"];
pub(super) const USER_WEIGHTS: usize = 1;

/// Whether a prompt stands once per response or once per group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Separate,
    Shared,
}

impl Layout {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "separate" => Ok(Self::Separate),
            "shared" => Ok(Self::Shared),
            _ => Err(Error::Argument(format!(
                "layout must be 'separate' or 'shared', got '{name}'"
            ))),
        }
    }
}

/// What a response is to its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Chosen,
    Rejected,
    Response,
}

/// One response: its tokens, which of them the assistant wrote, which of those are scored (no selection: all).
///
/// A scored token whose user weight is 0 is dead: it changes no loss, so nothing is computed for it alone.
#[derive(Debug, Clone)]
pub struct Response<'a> {
    pub ids: &'a [u32],
    pub mask: Bits<'a>,
    pub selected: Option<Bits<'a>>,
    pub values: [Option<&'a [f32]>; 3],
    pub kind: Kind,
    pub line: i64,
    pub score: f32,
    pub ratio: f32,
    /// Every token is an input, the last one too: for a head that reads the whole response.
    pub whole: bool,
    /// Tokens of user weight 0 live too: for a method that reads their log-probs.
    pub keep_unweighted: bool,
}

/// A prompt with its responses; `row` is the input row, for messages.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    pub row: u64,
    pub prompt: &'a [u32],
    pub responses: Vec<Response<'a>>,
}

impl Response<'_> {
    #[inline]
    pub(super) fn is_scored(&self, t: usize) -> bool {
        self.mask.get(t) && self.selected.is_none_or(|selected| selected.get(t))
    }

    /// Whether a method may give token `t` a weight other than 0.
    #[inline]
    pub(super) fn is_live(&self, t: usize) -> bool {
        let weights = self.values[USER_WEIGHTS].filter(|_| !self.keep_unweighted);
        self.is_scored(t) && weights.is_none_or(|weights| weights[t] != 0.0)
    }

    /// The tokens that are inputs: all, or those before the last live one, which is only a target. None: no token is
    /// live, and the prompt is not needed for this response either.
    pub(super) fn kept(&self) -> Option<usize> {
        if self.whole {
            return Some(self.ids.len());
        }
        (0..self.ids.len()).rev().find(|&t| self.is_live(t))
    }

    fn check(&self) -> std::result::Result<(), String> {
        let (tokens, line) = (self.ids.len(), self.line);
        let same = |name: &str, len: usize| {
            if len == tokens {
                return Ok(());
            }
            Err(format!(
                "line {line} has {tokens} ids but {len} entries (or null) in {name}; both must have one per token"
            ))
        };
        same("mask", self.mask.len())?;
        same(
            "selected",
            self.selected.map_or(tokens, |selected| selected.len()),
        )?;
        VALUES
            .iter()
            .zip(self.values)
            .try_for_each(|(name, values)| same(name, values.map_or(tokens, <[f32]>::len)))
    }
}

impl Group<'_> {
    /// Check once what `cost` and `assemble` rely on.
    pub fn check(&self) -> Result<()> {
        self.problem().map_or(Ok(()), |message| {
            Err(Error::Row {
                row: self.row as usize,
                message,
            })
        })
    }

    fn problem(&self) -> Option<String> {
        if self.prompt.is_empty() {
            return Some(
                "the prompt has no token; the first response token needs one to be predicted from"
                    .into(),
            );
        }
        if self.responses.is_empty() {
            return Some("there is a prompt but no response; a group needs one at least".into());
        }
        self.responses
            .iter()
            .find_map(|response| response.check().err())
    }

    /// Input tokens that the group takes in a batch: what follows a response's last live token is left out, and so
    /// is a prompt that no live token follows. 0: nothing in the group is live, and it takes no room beside others
    /// (`batch_tokens` says what a batch of such groups alone holds).
    pub fn cost(&self, layout: Layout) -> usize {
        let (mut live, mut tokens) = (0, 0);
        for kept in self.responses.iter().filter_map(Response::kept) {
            live += 1;
            tokens += kept;
        }
        let prompts = if layout == Layout::Shared {
            live.min(1)
        } else {
            live
        };
        prompts * self.prompt.len() + tokens
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_group_says_what_is_wrong_with_it() {
        let response = Response {
            ids: &[1, 2],
            mask: Bits::new(&[3], 0, 1),
            selected: None,
            values: [None; 3],
            kind: Kind::Response,
            line: 1,
            score: 0.0,
            ratio: 1.0,
            whole: false,
            keep_unweighted: false,
        };
        let group = |prompt, responses| Group {
            row: 7,
            prompt,
            responses,
        };
        let message = |group: Group<'_>| group.check().unwrap_err().to_string();
        assert!(
            message(group(&[], vec![response.clone()]))
                .starts_with("row 7: the prompt has no token")
        );
        assert!(message(group(&[1], vec![])).contains("no response"));
        assert!(message(group(&[1], vec![response])).contains("2 ids but 1 entries"));
    }
}
