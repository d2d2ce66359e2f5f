//! What a text is counted in without a tokenizer.

use unicode_segmentation::UnicodeSegmentation;

use crate::{Error, Result};

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
    pub(super) fn end(self, text: &str, index: usize) -> usize {
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
