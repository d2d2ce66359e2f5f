//! How much of the responses' texts their tokens say: what the vocabulary lacks becomes its unknown token, or nothing.

use std::ops::{AddAssign, Range};

/// Counts over responses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coverage {
    pub tokens: usize,
    pub unknown: usize, // of the tokens
    pub bytes: usize,   // visible ones of the contents; counted where some can be dropped
    pub dropped: usize, // of the bytes: no token stands for them
}

impl Coverage {
    /// Count a response's tokens.
    pub(super) fn add_tokens(&mut self, ids: &[u32], unknown: Option<u32>) {
        self.tokens += ids.len();
        if let Some(unknown) = unknown {
            self.unknown += ids.iter().filter(|id| **id == unknown).count();
        }
    }

    /// Count the visible bytes of `text[content]`; `offsets` count from byte `shift` of the text.
    pub(super) fn add_bytes(
        &mut self,
        text: &str,
        content: &Range<usize>,
        offsets: &[(u32, u32)],
        shift: usize,
    ) {
        self.bytes += text[content.clone()]
            .split_whitespace()
            .map(str::len)
            .sum::<usize>();
        self.dropped += dropped(text, content, offsets, shift);
    }
}

/// Bytes of `text[range]` that no token covers, but for spaces between what is covered. A model that drops a character
/// shifts what stands behind it in the word, so the bytes may be others, but as many.
pub(super) fn dropped(
    text: &str,
    range: &Range<usize>,
    offsets: &[(u32, u32)],
    shift: usize,
) -> usize {
    let gap = |from: usize, to: usize| {
        let gap = text.get(from..to.min(range.end));
        gap.map_or(0, |gap| gap.trim().len())
    };
    let (mut at, mut dropped) = (range.start, 0);
    for (start, end) in offsets {
        dropped += gap(at, *start as usize + shift);
        at = at.max(*end as usize + shift);
    }
    dropped + gap(at, range.end)
}

impl AddAssign for Coverage {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.unknown += other.unknown;
        self.bytes += other.bytes;
        self.dropped += other.dropped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_no_token_covers_are_counted() {
        let counts = |content: Range<usize>, offsets: &[(u32, u32)], shift| {
            let mut coverage = Coverage::default();
            coverage.add_bytes("Q: a é 中 b", &content, offsets, shift);
            (coverage.bytes, coverage.dropped)
        };
        let whole = [(0, 3), (3, 4), (4, 7), (8, 11), (11, 13)];
        assert_eq!(counts(3..13, &whole, 0), (7, 0));
        assert_eq!(counts(3..13, &[(0, 2), (3, 4), (11, 13)], 0), (7, 6)); // with the space between
        assert_eq!(counts(3..13, &[(0, 1), (2, 4)], 3), (7, 5));
        assert_eq!(counts(3..13, &[], 0), (7, 10));
        assert_eq!(counts(3..7, &[(2, 20)], 0), (3, 0));
    }
}
