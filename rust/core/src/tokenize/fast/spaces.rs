//! BPE in SentencePiece's manner: spaces become ▁, characters without a token become bytes.
//!
//! Where no merge makes a token in which ▁ follows something else, words that begin at a run of spaces can be encoded one
//! by one, although the model is asked for the whole text.

use super::bpe::{Pairs, QuickMap, Scratch};
use super::cache::Words;
use super::file::Model;
use super::scan::{Scan, character};
use super::vocab::{ids_of, pairs};

pub const SPACE: char = '\u{2581}';

/// What is written before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    None,
    First, // a space before the text, unless it begins with one
    Parts, // a space before each part between added tokens, unless it begins with one
    Every, // a space before each such part
}

/// Words begin at each space, or at each run of spaces.
pub struct Spaces {
    pub each: bool,
}

impl Scan for Spaces {
    #[inline(always)]
    fn end(&mut self, text: &[u8], at: usize) -> usize {
        let space = |byte: &u8| *byte == b' ';
        let rest = &text[at..];
        let lead = if self.each {
            usize::from(space(&rest[0]))
        } else {
            rest.iter().take_while(|byte| space(byte)).count()
        };
        at + rest[lead..]
            .iter()
            .position(space)
            .map_or(rest.len(), |more| lead + more)
    }
}

pub struct CharBpe {
    pairs: Pairs,
    ascii: [u32; 128],
    others: QuickMap<u32, u32>,
    bytes: Vec<u32>,
    lengths: Vec<u32>, // bytes of the text that each id's token stands for
}

const MISSING: u32 = u32::MAX;

impl CharBpe {
    pub fn new(model: &Model, each: bool) -> Result<Self, String> {
        let refuse = |what: &str| Err(format!("model: {what}"));
        if model.byte_fallback != Some(true) {
            return refuse("byte_fallback is not set");
        }
        if model.ignore_merges == Some(true) {
            return refuse("ignore_merges with byte_fallback");
        }
        let (ids, mut lengths) = ids_of(model, |token| token.replace(SPACE, " ").len())?;
        let byte = |byte: u32| ids.get(format!("<0x{byte:02X}>").as_str()).copied();
        let Some(bytes) = (0..256).map(byte).collect::<Option<Vec<u32>>>() else {
            return refuse("byte_fallback without a token for each byte");
        };
        if !ids.contains_key("\u{2581}") {
            return refuse("no token ▁");
        }
        for merge in &model.merges {
            let joined = format!("{}{}", merge.0, merge.1);
            let tail = joined.trim_start_matches(SPACE);
            if !each && tail.contains(SPACE) {
                return Err(format!(
                    "model: the token {joined:?} has ▁ behind something else"
                ));
            }
            if ids
                .get(joined.as_str())
                .is_some_and(|id| bytes.contains(id))
            {
                return Err(format!("model: merges make {joined:?}"));
            }
        }
        for id in &bytes {
            lengths[*id as usize] = 1;
        }
        let mut model_ids = Self {
            pairs: pairs(model, &ids)?,
            ascii: [MISSING; 128],
            others: QuickMap::default(),
            bytes,
            lengths,
        };
        for (token, id) in &ids {
            let mut characters = token.chars();
            if let (Some(c), None) = (characters.next(), characters.next()) {
                model_ids.add(c, *id);
            }
        }
        Ok(model_ids)
    }

    fn add(&mut self, c: char, id: u32) {
        match c {
            SPACE => self.ascii[b' ' as usize] = id,
            ' ' => {} // no space is left when the model is asked
            _ if c.is_ascii() => self.ascii[c as usize] = id,
            _ => {
                self.others.insert(u32::from(c), id);
            }
        }
    }

    pub fn length(&self, id: u32) -> usize {
        self.lengths[id as usize] as usize
    }

    pub fn vocab_size(&self) -> usize {
        self.lengths.len()
    }
}

impl Words for CharBpe {
    fn split(&self, word: &[u8], scratch: &mut Scratch) -> bool {
        scratch.symbols.clear();
        let mut at = 0;
        while let Some((c, length)) = character(word, at) {
            let id = if c.is_ascii() {
                Some(self.ascii[c as usize]).filter(|id| *id != MISSING)
            } else {
                self.others.get(&u32::from(c)).copied()
            };
            match id {
                Some(id) => scratch.symbols.push(id),
                None => scratch.symbols.extend(
                    word[at..at + length]
                        .iter()
                        .map(|byte| self.bytes[*byte as usize]),
                ),
            }
            at += length;
        }
        self.pairs.merge(scratch);
        true
    }
}
