//! Our own tokenization engine: the ids and offsets of `tokenizers`, many times faster.
//!
//! Added tokens are found first, what lies between them is cut into words by a scanner, and words become ids by a cache
//! in front of the merges. Everything that is not known here exactly is left to `tokenizers`.

#![allow(clippy::inline_always)] // the way of a word is one loop

mod added;
mod bpe;
mod cache;
mod classes;
mod family;
mod file;
mod run;
mod scan;
mod spaces;
mod table;
mod vocab;
mod whole;

use std::sync::{Mutex, PoisonError};

use added::Finder;
use cache::{Cache, Out};
use family::{Cut, Family};
pub use file::{AddedToken, File};
pub use run::Unsettled;
use run::{Kind, Parts, Run};
use spaces::{CharBpe, Prefix};
use vocab::ByteBpe;

/// Threads that have a cache of their own; others share.
const CACHES: usize = 64;

pub struct Engine {
    parts: Parts,
    divisible: bool, // a visible character and a space never stand together in one token
    vocab_size: usize,
    caches: Vec<Slot>,
}

/// A thread's cache, on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Slot(Mutex<Option<Box<Cache>>>);

impl Engine {
    /// The engine for a file, or the reason why it has none. `special` tokens that the file does not list as added, and
    /// the vocabulary has, are added.
    pub fn new(file: &File, special: &[String]) -> Result<Self, String> {
        let model = file.bpe()?;
        let family = Family::of(file, &model)?;
        let mut tokens = file.added_tokens.clone();
        let in_model = |token: &String| {
            model
                .vocab
                .0
                .iter()
                .find(|(name, _)| name == token)
                .map(|(_, id)| *id)
        };
        for content in special {
            if tokens.iter().any(|token| token.content == *content) {
                continue; // the file says more of it than its name
            }
            let id = in_model(content);
            let content = content.clone();
            tokens.extend(id.map(|id| AddedToken::special(id, content)));
        }
        for (at, token) in tokens.iter().enumerate() {
            let same = |other: &AddedToken| other.id == token.id || other.content == token.content;
            if tokens[..at].iter().any(same) {
                return Err(format!(
                    "added token {:?}: it or its id occurs twice",
                    token.content
                ));
            }
        }
        let (normalized, raw): (Vec<_>, Vec<_>) =
            tokens.into_iter().partition(|token| token.normalized);
        let as_it_is = |token: &AddedToken| match family.cut {
            Cut::Spaces { .. } => {
                family.prefix != Prefix::Every && !token.content.contains([' ', spaces::SPACE])
            }
            _ => !family.nfc || token.content.is_ascii(),
        };
        if let Some(token) = normalized.iter().find(|token| !as_it_is(token)) {
            return Err(format!("added token {:?}: to be normalized", token.content));
        }
        let largest = raw
            .iter()
            .chain(&normalized)
            .map(|token| token.id as usize + 1)
            .max();
        let model = match family.cut {
            Cut::Spaces { each } => Kind::Characters(Box::new(CharBpe::new(&model, each)?)),
            _ => Kind::Bytes(Box::new(ByteBpe::new(&model)?)),
        };
        let (raw, normalized) = (Finder::new(&raw)?, Finder::new(&normalized)?);
        Ok(Self {
            divisible: raw.divisible() && normalized.divisible(),
            vocab_size: largest.unwrap_or(0).max(model.vocab_size()),
            parts: Parts {
                family,
                model,
                raw,
                normalized,
            },
            caches: (0..CACHES).map(|_| Slot::default()).collect(),
        })
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether every text has its tokens in full.
    pub fn is_complete(&self) -> bool {
        self.parts.model.is_complete()
    }

    /// Contents and ids.
    pub fn added_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.parts
            .raw
            .tokens()
            .chain(self.parts.normalized.tokens())
    }

    /// A byte before `shared` at which every text that begins with `text[..shared]` can be cut, and encoded in two parts
    /// with the same result; 0 where there is none.
    pub fn restart(&self, text: &str, shared: usize) -> usize {
        if !self.divisible {
            return 0;
        }
        let bytes = &text.as_bytes()[..shared];
        let divides = |window: &[u8]| window[0].is_ascii_graphic() && window[1] == b' ';
        let place = bytes.windows(2).rposition(divides);
        place.map_or(0, |at| at + 1)
    }

    /// Append the ids of `text`, and their byte ranges shifted by `origin`. `begins`: no text stands before it; else it is
    /// cut off where `restart` says. On an error the buffers are as before.
    pub fn encode(
        &self,
        text: &str,
        origin: usize,
        begins: bool,
        ids: &mut Vec<u32>,
        offsets: Option<&mut Vec<(u32, u32)>>,
    ) -> Result<(), Unsettled> {
        let slot = &self.caches[rayon::current_thread_index().unwrap_or(0) % CACHES];
        let mut slot = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (
            ids.len(),
            offsets.as_ref().map_or(0, |offsets| offsets.len()),
        );
        let mut run = Run {
            parts: &self.parts,
            cache: slot.get_or_insert_default(),
            origin,
            begins,
            out: Out::new(ids),
            offsets,
        };
        let result = run.text(text).and(if run.cache.take_unknown() {
            Err(Unsettled)
        } else {
            Ok(())
        });
        if result.is_err() {
            if let Some(offsets) = &mut run.offsets {
                offsets.truncate(before.1);
            }
        }
        run.out.finish();
        if result.is_err() {
            ids.truncate(before.0);
        }
        result
    }
}

impl AddedToken {
    fn special(id: u32, content: String) -> Self {
        Self {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }
}
