//! Texts: where they are cut, counted in characters, words, sentences or the tokens of a tokenizer.

use super::cut::{Cut, Kept};
use super::unit::Unit;
use crate::Result;
use crate::tokenize::{Encoded, Encoder};

/// How a text is counted.
pub enum Counter<'a> {
    Unit(Unit),
    Tokens(&'a Encoder),
}

impl<'a> Counter<'a> {
    /// By the tokens of the tokenizer, else by the unit of this name.
    pub fn new(unit: &str, tokenizer: Option<&'a Encoder>) -> Result<Self> {
        tokenizer.map_or_else(
            || Unit::parse(unit).map(Self::Unit),
            |encoder| Ok(Self::Tokens(encoder)),
        )
    }

    /// Units in the text; `tokens` is room for its tokens.
    pub fn count(&self, text: &str, tokens: &mut Encoded) -> Result<usize> {
        match self {
            Self::Unit(unit) => Ok(unit.count(text)),
            Self::Tokens(encoder) => {
                encode(encoder, text, tokens)?;
                Ok(tokens.ids.len())
            }
        }
    }

    /// Bytes kept of the text, a ratio being taken of `base` or of its own units; `tokens` is room for its tokens.
    pub fn kept(
        &self,
        text: &str,
        cut: Cut,
        base: Option<usize>,
        tokens: &mut Encoded,
    ) -> Result<Kept> {
        match self {
            Self::Unit(unit) => Ok(kept_text(text, *unit, cut, base)),
            Self::Tokens(encoder) => {
                encode(encoder, text, tokens)?;
                Ok(kept_bytes(text, &tokens.offsets, cut, base))
            }
        }
    }
}

fn encode(encoder: &Encoder, text: &str, tokens: &mut Encoded) -> Result<()> {
    tokens.clear();
    encoder.encode_into(text, tokens)
}

/// Bytes kept of a text that is cut after its last unit kept; white space and punctuation that follow go too.
///
/// ```
/// # use pyprefopt_core::truncate::{Cut, Kept, Unit, kept_text};
/// let two = Cut::new(None, Some(2), "ceil")?;
/// assert_eq!(kept_text("one, two, three", Unit::Words, two, None), Kept { kept: 8, cut: 1 });
/// assert_eq!(kept_text("One. Two! Three", Unit::Sentences, two, None), Kept { kept: 9, cut: 1 });
/// # Ok::<(), pyprefopt_core::Error>(())
/// ```
pub fn kept_text(text: &str, unit: Unit, cut: Cut, base: Option<usize>) -> Kept {
    let length = unit.count(text);
    let kept = cut.kept(length, base.unwrap_or(length));
    if kept == length {
        return Kept {
            kept: text.len(),
            cut: 0,
        };
    }
    Kept {
        kept: unit.end(text, kept - 1),
        cut: length - kept,
    }
}

/// Bytes kept of a text that is cut by tokens, given their byte offsets: up to the end of the last one kept.
///
/// Tokens that share a character carry its whole range. A character whose tokens are not all kept is dropped, so that the
/// text never has more tokens than asked for; if it is the first character, it is kept whole, so that the text is never empty.
/// Tokens cut are those that begin at or after the cut.
pub fn kept_bytes(text: &str, offsets: &[(u32, u32)], cut: Cut, base: Option<usize>) -> Kept {
    let length = offsets.len();
    let kept = cut.kept(length, base.unwrap_or(length));
    let whole = Kept {
        kept: text.len(),
        cut: 0,
    };
    if kept == length {
        return whole;
    }
    let end = offsets[kept - 1].1 as usize;
    let next = offsets[kept].0 as usize;
    let mut at = if next < end && next > 0 { next } else { end };
    while !text.is_char_boundary(at) {
        at += 1;
    }
    if at >= text.len() {
        return whole; // one character alone, which is kept whole
    }
    let gone = offsets.iter().filter(|offset| offset.0 as usize >= at);
    Kept {
        kept: at,
        cut: gone.count().max(1), // a tail without a token of its own is something that went
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(units: usize) -> Cut {
        Cut::new(None, Some(units), "ceil").expect("valid")
    }

    #[test]
    fn a_split_character_is_dropped_unless_it_is_the_first() {
        // "a中": tokens a, and two that share the character
        let offsets = [(0, 1), (1, 4), (1, 4)];
        let kept = |text, offsets: &[(u32, u32)], tokens| {
            let kept = kept_bytes(text, offsets, count(tokens), None);
            (kept.kept, kept.cut)
        };
        assert_eq!(kept("a中", &offsets, 2), (1, 2));
        assert_eq!(kept("a中", &offsets, 3), (4, 0));
        assert_eq!(kept("中文", &[(0, 3), (0, 3), (3, 6)], 1), (3, 1));
        assert_eq!(kept("中", &[(0, 3), (0, 3)], 1), (3, 0));
    }

    #[test]
    fn characters_are_unicode() {
        let kept = |text| kept_text(text, Unit::Characters, count(2), None);
        assert_eq!(kept("中文字"), Kept { kept: 6, cut: 1 });
        assert_eq!(kept(""), Kept { kept: 0, cut: 0 });
    }

    #[test]
    fn words_and_sentences_are_prefixes_without_what_follows() {
        let kept = |text, unit| kept_text(text, unit, count(1), None);
        let words = kept("  «don't» stop", Unit::Words);
        assert_eq!(words, Kept { kept: 9, cut: 1 });
        assert_eq!(kept("¿?!", Unit::Words), Kept { kept: 4, cut: 0 });
        assert_eq!(kept("一。二", Unit::Sentences), Kept { kept: 6, cut: 1 });
        assert_eq!(kept(" \n a\nb", Unit::Sentences), Kept { kept: 4, cut: 1 });
        assert_eq!(kept("  \n ", Unit::Sentences), Kept { kept: 4, cut: 0 });
    }

    proptest! {
        /// What is left is a prefix with exactly the units that were kept, whatever the text.
        #[test]
        fn a_cut_text_has_the_units_that_were_kept(
            text in prop_oneof![".{0,40}", "[aB1 .,!?。中'\"\\n\u{301}_:ア-]{0,40}"],
            length in 1usize..6,
        ) {
            for unit in [Unit::Characters, Unit::Words, Unit::Sentences] {
                let Kept { kept, cut } = kept_text(&text, unit, count(length), None);
                prop_assert!(text.is_char_boundary(kept));
                let all = unit.count(&text);
                prop_assert_eq!(cut, all.saturating_sub(length));
                prop_assert_eq!(unit.count(&text[..kept]), all - cut);
                prop_assert!(cut > 0 || kept == text.len());
            }
        }
    }

    #[test]
    fn texts_are_counted_by_a_unit_or_by_tokens() {
        assert!(Unit::parse("tokens").is_err());
        assert!(Counter::new("tokens", None).is_err());
        let json = br#"{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"},
            "pre_tokenizer": {"type": "WhitespaceSplit"}}"#;
        let encoder = Encoder::new(json, &[]).expect("a tokenizer");
        let mut tokens = Encoded::default();
        for (unit, encoder, units, bytes) in
            [("characters", None, 5, 2), ("tokens", Some(&encoder), 3, 3)]
        {
            let counter = Counter::new(unit, encoder).expect("known");
            assert_eq!(counter.count("a b a", &mut tokens), Ok(units));
            let kept = counter
                .kept("a b a", count(2), None, &mut tokens)
                .expect("encoded");
            assert_eq!(
                kept,
                Kept {
                    kept: bytes,
                    cut: units - 2
                }
            );
        }
    }
}
