//! How much of the responses' texts their tokens say: what the vocabulary lacks becomes its unknown token, or nothing.

use std::ops::{AddAssign, Range};

/// Counts over responses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coverage {
    pub tokens: usize,
    pub unknown: usize,    // of the tokens
    pub characters: usize, // visible ones of the contents; counted where some can be dropped
    pub dropped: usize,    // of the characters: no token stands for them
}

impl Coverage {
    /// Count a response's tokens.
    pub(super) fn add_tokens(&mut self, ids: &[u32], unknown: Option<u32>) {
        self.tokens += ids.len();
        if let Some(unknown) = unknown {
            self.unknown += ids.iter().filter(|id| **id == unknown).count();
        }
    }

    /// Count the visible characters of `text[content]`; `offsets` count from byte `shift` of the text.
    pub(super) fn add_characters(
        &mut self,
        text: &str,
        content: &Range<usize>,
        offsets: &[(u32, u32)],
        shift: usize,
    ) {
        let visible = |part: &str| part.chars().filter(|c| !c.is_whitespace()).count();
        self.characters += visible(&text[content.clone()]);
        let mut at = content.start; // all before it stands in a token, or was counted
        for (start, end) in offsets {
            let (start, end) = (*start as usize + shift, *end as usize + shift);
            if let Some(gap) = text.get(at..start.min(content.end)) {
                self.dropped += visible(gap);
            }
            at = at.max(end);
        }
        self.dropped += text.get(at..content.end).map_or(0, visible);
    }
}

impl AddAssign for Coverage {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.unknown += other.unknown;
        self.characters += other.characters;
        self.dropped += other.dropped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_no_token_covers_are_counted() {
        let dropped = |content: Range<usize>, offsets: &[(u32, u32)], shift| {
            let mut coverage = Coverage::default();
            coverage.add_characters("Q: a é 中 b", &content, offsets, shift);
            (coverage.characters, coverage.dropped)
        };
        assert_eq!(
            dropped(3..13, &[(0, 3), (3, 4), (4, 7), (8, 11), (11, 13)], 0),
            (4, 0)
        );
        assert_eq!(dropped(3..13, &[(0, 2), (3, 4), (11, 13)], 0), (4, 2));
        assert_eq!(dropped(3..13, &[(0, 1), (2, 4)], 3), (4, 2)); // the last two
        assert_eq!(dropped(3..13, &[], 0), (4, 4));
        assert_eq!(dropped(3..7, &[(2, 20)], 0), (2, 0));
    }
}
