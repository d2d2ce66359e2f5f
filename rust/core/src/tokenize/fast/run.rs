//! The way of a text through the engine: between added tokens into sections, into words, into ids and their bytes.

use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

use super::added::Finder;
use super::cache::{Cache, Out, Words};
use super::classes::{CLASSES, UNSETTLED};
use super::family::{Cut, Family};
use super::scan::{self, Cl100k, Falcon, Gpt2, O200k, Scan};
use super::spaces::{self, CharBpe, Prefix, Spaces};
use super::vocab::ByteBpe;

/// What a text comes by.
pub struct Parts {
    pub family: Family,
    pub model: Kind,
    pub raw: Finder,        // added tokens that are looked for in the text as it is
    pub normalized: Finder, // and those that are looked for afterwards
}

pub enum Kind {
    Bytes(Box<ByteBpe>),
    Characters(Box<CharBpe>),
}

impl Kind {
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes(model) => model.vocab_size(),
            Self::Characters(model) => model.vocab_size(),
        }
    }

    /// Whether every text has its tokens in full; a file of characters that lacks one is refused.
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Bytes(model) => model.is_complete(),
            Self::Characters(_) => true,
        }
    }
}

/// The text is one that only `tokenizers` knows how to treat.
pub struct Unsettled;

/// One text on its way through the engine.
pub struct Run<'a> {
    pub parts: &'a Parts,
    pub cache: &'a mut Cache,
    pub origin: usize,
    pub begins: bool,
    pub out: Out<'a>,
    pub offsets: Option<&'a mut Vec<(u32, u32)>>,
}

impl Run<'_> {
    pub fn text(&mut self, text: &str) -> Result<(), Unsettled> {
        let mut at = 0;
        while at < text.len() {
            let found = self.parts.raw.find(text, at);
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
        let family = &self.parts.family;
        let spaces = matches!(family.cut, Cut::Spaces { .. });
        if family.nfc && !settled(text) || spaces && text.contains(spaces::SPACE) {
            return Err(Unsettled);
        }
        let mut at = 0;
        while at < text.len() {
            let found = self.parts.normalized.find(text, at);
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
        let parts = self.parts;
        let first = self.out.len();
        let model = match &parts.model {
            Kind::Bytes(model) => &**model,
            Kind::Characters(model) => return self.characters(model, text, origin),
        };
        match parts.family.cut {
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
        let Cut::Spaces { each } = self.parts.family.cut else {
            return;
        };
        let first = self.out.len();
        let goes_on = origin == 0 && !self.begins;
        let prefix = !goes_on
            && match self.parts.family.prefix {
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
