//! Truncation: how much of a response is kept, counted in content tokens, characters, words or sentences.

use unicode_segmentation::UnicodeSegmentation;

use crate::{Error, Result};

/// How much of a response is kept: a share of it, or a number of units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    Ratio(f64),
    Count(usize),
}

/// What a share that is no whole number becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    Ceil,
    Floor,
}

/// What a text is counted in without a tokenizer.
///
/// Words and sentences are Unicode's (UAX #29): a word is a segment between word boundaries that holds a letter or a
/// digit, so that each Chinese character is one; a sentence is a segment between sentence boundaries that holds more
/// than white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Characters,
    Words,
    Sentences,
}

impl Unit {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "characters" => Ok(Self::Characters),
            "words" => Ok(Self::Words),
            "sentences" => Ok(Self::Sentences),
            _ => Err(Error::Argument(format!(
                "unit must be 'characters', 'words' or 'sentences' where no tokenizer counts, got '{name}'"
            ))),
        }
    }

    /// Units in the text.
    ///
    /// ```
    /// # use pyprefopt_core::truncate::Unit;
    /// assert_eq!(Unit::Words.count("It's 3.14, 中文!"), 4);
    /// assert_eq!(Unit::Sentences.count("One. Two, e.g. this? 三。四"), 4);
    /// ```
    pub fn count(self, text: &str) -> usize {
        match self {
            Self::Characters => text.chars().count(),
            Self::Words => text.unicode_words().count(),
            Self::Sentences => sentences(text).count(),
        }
    }

    /// Byte after the last character of unit `index` (from 0), which must be there.
    fn end(self, text: &str, index: usize) -> usize {
        let end = match self {
            Self::Characters => text
                .char_indices()
                .nth(index)
                .map(|(at, character)| at + character.len_utf8()),
            Self::Words => text
                .unicode_word_indices()
                .nth(index)
                .map(|(at, word)| at + word.len()),
            Self::Sentences => sentences(text).nth(index),
        };
        end.unwrap_or(text.len())
    }
}

/// Where each sentence ends, the white space after it left out.
fn sentences(text: &str) -> impl Iterator<Item = usize> {
    text.split_sentence_bound_indices()
        .map(|(at, sentence)| (at, sentence.trim_end().len()))
        .filter(|&(_, length)| length > 0)
        .map(|(at, length)| at + length)
}

/// What is left of one response: `kept` tokens or bytes, and how many units went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub kept: usize,
    pub cut: usize,
}

/// A truncation: at least one unit is kept, at most what is there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    pub keep: Keep,
    pub rounding: Rounding,
}

impl Cut {
    /// Exactly one of `ratio` (above 0, up to 1) and `count` (from 1 on); `rounding` is `ceil` or `floor`.
    pub fn new(ratio: Option<f64>, count: Option<usize>, rounding: &str) -> Result<Self> {
        let keep = match (ratio, count) {
            (Some(ratio), None) if ratio > 0.0 && ratio <= 1.0 => Keep::Ratio(ratio),
            (Some(ratio), None) => {
                return Err(Error::Argument(format!(
                    "ratio must be above 0 and at most 1, got {ratio}"
                )));
            }
            (None, Some(count)) if count > 0 => Keep::Count(count),
            (None, Some(count)) => {
                return Err(Error::Argument(format!(
                    "length must be at least 1, got {count}"
                )));
            }
            _ => {
                return Err(Error::Argument(
                    "truncation needs exactly one of ratio and length".into(),
                ));
            }
        };
        let rounding = match rounding {
            "ceil" => Rounding::Ceil,
            "floor" => Rounding::Floor,
            other => {
                return Err(Error::Argument(format!(
                    "rounding must be 'ceil' or 'floor', got '{other}'"
                )));
            }
        };
        Ok(Self { keep, rounding })
    }

    /// Units kept of `length`, a ratio being taken of `base`. A product within 1e-9 of a whole number is that number,
    /// since 0.07 · 100 is not 7 in binary.
    ///
    /// ```
    /// # use pyprefopt_core::truncate::Cut;
    /// assert_eq!(Cut::new(Some(0.07), None, "ceil")?.kept(100, 100), 7);
    /// assert_eq!(Cut::new(Some(0.5), None, "ceil")?.kept(5, 5), 3);
    /// assert_eq!(Cut::new(Some(0.1), None, "floor")?.kept(5, 5), 1);
    /// assert_eq!(Cut::new(Some(0.5), None, "ceil")?.kept(9, 4), 2);
    /// # Ok::<(), pyprefopt_core::Error>(())
    /// ```
    pub fn kept(&self, length: usize, base: usize) -> usize {
        let wanted = match self.keep {
            Keep::Count(count) => count,
            Keep::Ratio(ratio) => {
                let exact = ratio * base as f64;
                let near = exact.round();
                let whole = (exact - near).abs() <= 1e-9 * near.max(1.0);
                match self.rounding {
                    _ if whole => near as usize,
                    Rounding::Ceil => exact.ceil() as usize,
                    Rounding::Floor => exact.floor() as usize,
                }
            }
        };
        wanted.max(1).min(length)
    }
}

/// Positions kept of a segment whose content tokens are marked: up to the last one kept, or all where nothing is cut.
/// A ratio is taken of `base`, or of the segment's own content.
///
/// ```
/// # use pyprefopt_core::truncate::{Cut, Kept, kept_positions};
/// let half = Cut::new(Some(0.5), None, "ceil")?;
/// let content = [false, true, true, true, true, false];
/// assert_eq!(kept_positions(&content, half, None), Kept { kept: 3, cut: 2 });
/// assert_eq!(kept_positions(&content, half, Some(2)), Kept { kept: 2, cut: 3 });
/// assert_eq!(kept_positions(&[false, true, false], half, None), Kept { kept: 3, cut: 0 });
/// # Ok::<(), pyprefopt_core::Error>(())
/// ```
pub fn kept_positions(content: &[bool], cut: Cut, base: Option<usize>) -> Kept {
    let length = content.iter().filter(|is| **is).count();
    let kept = cut.kept(length, base.unwrap_or(length));
    let whole = Kept {
        kept: content.len(),
        cut: 0,
    };
    if kept == length {
        return whole;
    }
    let mut marked = content.iter().enumerate().filter(|(_, is)| **is);
    marked.nth(kept - 1).map_or(whole, |(position, _)| Kept {
        kept: position + 1,
        cut: length - kept,
    })
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

    fn count(tokens: usize) -> Cut {
        Cut::new(None, Some(tokens), "ceil").expect("valid")
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

        /// Cutting by the same length again changes nothing; a base that is the own length is no base.
        #[test]
        fn positions_are_stable(content in prop::collection::vec(any::<bool>(), 0..30), ratio in 0.01f64..=1.0) {
            let cut = Cut::new(Some(ratio), None, "ceil").expect("valid");
            let own = content.iter().filter(|is| **is).count();
            let first = kept_positions(&content, cut, None);
            prop_assert_eq!(first, kept_positions(&content, cut, Some(own)));
            let left = content[..first.kept].iter().filter(|is| **is).count();
            prop_assert_eq!(left + first.cut, own);
            prop_assert_eq!(left, cut.kept(own, own));
            if left > 0 {
                prop_assert_eq!(kept_positions(&content[..first.kept], count(left), None).cut, 0);
            }
        }
    }

    #[test]
    fn a_segment_without_content_stays() {
        let kept = |content: &[bool]| kept_positions(content, count(1), None).kept;
        assert_eq!(kept(&[false, false]), 2);
        assert_eq!(kept(&[]), 0);
    }

    #[test]
    fn exactly_one_setting() {
        assert!(Cut::new(None, None, "ceil").is_err());
        assert!(Cut::new(Some(0.5), Some(3), "ceil").is_err());
        assert!(Cut::new(Some(1.5), None, "ceil").is_err());
        assert!(Cut::new(Some(f64::NAN), None, "ceil").is_err());
        assert!(Cut::new(None, Some(0), "ceil").is_err());
        assert!(Cut::new(None, Some(1), "round").is_err());
        assert!(Unit::parse("tokens").is_err());
    }
}
