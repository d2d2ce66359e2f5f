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
mod scan;
mod spaces;
mod table;
mod vocab;

use std::sync::{Mutex, PoisonError};

use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

use added::Finder;
use cache::{Cache, Out, Words};
use classes::{CLASSES, UNSETTLED};
use family::{Cut, Family};
pub use file::{AddedToken, File};
use scan::{Cl100k, Falcon, Gpt2, O200k, Scan};
use spaces::{CharBpe, Prefix, Spaces};
use vocab::ByteBpe;

/// Threads that have a cache of their own; others share.
const CACHES: usize = 64;

pub struct Engine {
    family: Family,
    model: Kind,
    raw: Finder,        // added tokens that are looked for in the text as it is
    normalized: Finder, // and those that are looked for afterwards
    divisible: bool,    // a visible character and a space never stand together in one token
    vocab_size: usize,
    caches: Vec<Mutex<Option<Box<Cache>>>>,
}

enum Kind {
    Bytes(Box<ByteBpe>),
    Characters(Box<CharBpe>),
}

impl Kind {
    fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes(model) => model.vocab_size(),
            Self::Characters(model) => model.vocab_size(),
        }
    }
}

/// The text is one that only `tokenizers` knows how to treat.
pub struct Unsettled;

impl Engine {
    /// The engine for a file, or the reason why it has none. `special` tokens replace the file's of the same name.
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
            let known = tokens.iter().position(|token| token.content == *content);
            let id = known
                .map(|at| tokens.remove(at).id)
                .or_else(|| in_model(content));
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
            family,
            vocab_size: largest.unwrap_or(0).max(model.vocab_size()),
            model,
            raw,
            normalized,
            caches: (0..CACHES).map(|_| Mutex::new(None)).collect(),
        })
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Contents and ids.
    pub fn added_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.raw.tokens().chain(self.normalized.tokens())
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
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (
            ids.len(),
            offsets.as_ref().map_or(0, |offsets| offsets.len()),
        );
        let mut run = Run {
            engine: self,
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

/// One text on its way through the engine.
struct Run<'a> {
    engine: &'a Engine,
    cache: &'a mut Cache,
    origin: usize,
    begins: bool,
    out: Out<'a>,
    offsets: Option<&'a mut Vec<(u32, u32)>>,
}

impl Run<'_> {
    fn text(&mut self, text: &str) -> Result<(), Unsettled> {
        let mut at = 0;
        while at < text.len() {
            let found = self.engine.raw.find(text, at);
            let end = found.as_ref().map_or(text.len(), |found| found.start);
            self.section(&text[at..end], at)?;
            let Some(found) = found else { break };
            self.token(found.id, found.start, found.end);
            at = found.end;
        }
        Ok(())
    }

    /// A part of the text between two tokens that are looked for before the normalizer.
    fn section(&mut self, text: &str, origin: usize) -> Result<(), Unsettled> {
        let family = &self.engine.family;
        let spaces = matches!(family.cut, Cut::Spaces { .. });
        if family.nfc && !settled(text) || spaces && text.contains(spaces::SPACE) {
            return Err(Unsettled);
        }
        let mut at = 0;
        while at < text.len() {
            let found = self.engine.normalized.find(text, at);
            let end = found.as_ref().map_or(text.len(), |found| found.start);
            self.words(&text.as_bytes()[at..end], origin + at);
            let Some(found) = found else { break };
            self.token(found.id, origin + found.start, origin + found.end);
            at = found.end;
        }
        Ok(())
    }

    fn token(&mut self, id: u32, start: usize, end: usize) {
        self.out.push(id);
        if let Some(offsets) = &mut self.offsets {
            offsets.push(((self.origin + start) as u32, (self.origin + end) as u32));
        }
    }

    fn words(&mut self, text: &[u8], origin: usize) {
        if text.is_empty() {
            return;
        }
        let engine = self.engine;
        let first = self.out.len();
        let model = match &engine.model {
            Kind::Bytes(model) => &**model,
            Kind::Characters(model) => return self.characters(model, text, origin),
        };
        match engine.family.cut {
            Cut::Cl100k { digits } => self.scan(model, Cl100k { digits }, text, 0),
            Cut::O200k => self.scan(model, O200k, text, 0),
            Cut::Falcon => self.scan_falcon(model, text),
            Cut::Gpt2 | Cut::Spaces { .. } => self.scan(model, Gpt2, text, 0),
        }
        if let Some(offsets) = &mut self.offsets {
            let lengths = self.out.from(first).iter().map(|id| model.length(*id));
            widen(text, self.origin + origin, 0, lengths, offsets);
        }
    }

    /// A part of the text as `SentencePiece` reads it.
    fn characters(&mut self, model: &CharBpe, text: &[u8], origin: usize) {
        let Cut::Spaces { each } = self.engine.family.cut else {
            return;
        };
        let first = self.out.len();
        let goes_on = origin == 0 && !self.begins;
        let prefix = !goes_on
            && match self.engine.family.prefix {
                Prefix::None => false,
                Prefix::First => origin == 0 && text[0] != b' ',
                Prefix::Parts => text[0] != b' ',
                Prefix::Every => true,
            };
        let mut at = 0;
        if prefix {
            at = Spaces { each }.end(text, 0);
            let word = [b" ", &text[..at]].concat();
            self.cache
                .encode(model, &word, 0, word.len(), &mut self.out);
        }
        self.scan(model, Spaces { each }, text, at);
        if let Some(offsets) = &mut self.offsets {
            let lengths = self.out.from(first).iter().map(|id| model.length(*id));
            widen(
                text,
                self.origin + origin,
                usize::from(prefix),
                lengths,
                offsets,
            );
        }
    }

    #[inline(always)]
    fn scan(&mut self, model: &impl Words, mut scan: impl Scan, text: &[u8], mut at: usize) {
        while at < text.len() {
            let end = scan.end(text, at);
            self.cache.encode(model, text, at, end, &mut self.out);
            at = end;
        }
    }

    fn scan_falcon(&mut self, model: &ByteBpe, text: &[u8]) {
        let (mut scan, mut at) = (Falcon::default(), 0);
        while at < text.len() {
            let end = scan.end(text, at);
            while at < end {
                let piece = scan::falcon_piece(&text[..end], at);
                self.cache.encode(model, text, at, piece, &mut self.out);
                at = piece;
            }
        }
    }
}

/// Byte ranges of tokens of these lengths; a token that ends inside a character carries the whole character. The first
/// `before` bytes of the tokens stand before the text and carry its first character.
fn widen(
    text: &[u8],
    origin: usize,
    before: usize,
    lengths: impl Iterator<Item = usize>,
    offsets: &mut Vec<(u32, u32)>,
) {
    let mut at = 0;
    if before == 0 && text.is_ascii() {
        offsets.extend(lengths.map(|length| {
            let start = origin + at;
            at += length;
            (start as u32, (origin + at) as u32)
        }));
        return;
    }
    let inside = |at: usize| text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    for length in lengths {
        let start = at;
        at += length;
        let (mut start, mut end) = (
            start.saturating_sub(before),
            at.saturating_sub(before).max(1),
        );
        while inside(start) {
            start -= 1;
        }
        while inside(end) {
            end += 1;
        }
        offsets.push(((origin + start) as u32, (origin + end) as u32));
    }
}

/// Whether NFC leaves the text as it is, as far as a quick look tells.
fn settled(text: &str) -> bool {
    const PLAIN: u8 = 0xcc; // below U+0300 nothing changes
    let plain = |bytes: &[u8]| bytes.iter().fold(0, |most, byte| most.max(*byte)) < PLAIN;
    if text.as_bytes().chunks(64).all(plain) {
        return true;
    }
    let (mut at, bytes) = (0, text.as_bytes());
    while let Some(&first) = bytes.get(at) {
        if first < 128 {
            let eight = bytes[at..].first_chunk::<8>();
            at += if eight.is_some_and(|some| some.is_ascii()) {
                8
            } else {
                1
            };
            continue;
        }
        let Some((c, length)) = scan::character(bytes, at) else {
            return false;
        };
        if CLASSES.of(c) & UNSETTLED != 0 {
            return matches!(is_nfc_quick(text.chars()), IsNormalized::Yes);
        }
        at += length;
    }
    true
}
