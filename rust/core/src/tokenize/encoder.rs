//! The tokenizer of a `tokenizer.json`, without the special tokens that it would add and with untrimmed byte offsets.
//!
//! `tokenizers` is the reference. Our own engine encodes where it knows every component of the file and has given the
//! same ids and offsets on a probe text.

mod bounds;
mod reference;
mod special;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;
use tokenizers::Encoding;

use reference::Reference;
use special::Special;

use super::fast::{Engine, File, Unsettled};
use super::probe::probe_text;
use crate::{Error, Result};

/// Ids shown of either side of a mismatch.
const SHOWN: usize = 8;

/// Tokens of one text; `offsets` are byte ranges of the text. Tokens that share a character carry its whole range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    pub offsets: Vec<(u32, u32)>,
}

impl Encoded {
    pub(crate) fn clear(&mut self) {
        self.ids.clear();
        self.offsets.clear();
    }
}

/// Tokens of texts that begin alike: `prefix`, and behind it `rests`, one a text. The prefix has no offsets where it is
/// `placeless`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared {
    pub prefix: Encoded,
    pub rests: Vec<Encoded>,
    pub placeless: bool,
}

impl Shared {
    fn clear(&mut self, texts: usize) {
        self.prefix.clear();
        self.rests.iter_mut().for_each(Encoded::clear);
        self.rests.resize_with(texts, Encoded::default);
    }

    fn fill(
        &mut self,
        engine: &Engine,
        texts: &[&str],
        cut: usize,
    ) -> std::result::Result<(), Unsettled> {
        let Encoded { ids, offsets } = &mut self.prefix;
        let offsets = (!self.placeless).then_some(offsets);
        engine.encode(&texts[0][..cut], 0, true, ids, offsets)?;
        for (text, Encoded { ids, offsets }) in texts.iter().zip(&mut self.rests) {
            engine.encode(&text[cut..], cut, false, ids, Some(offsets))?;
        }
        Ok(())
    }
}

/// Where the fast engine and the reference differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    pub text: usize,    // index into the texts
    pub byte: u32,      // where the first token that differs begins
    pub fast: Vec<u32>, // ids from there on, a few
    pub reference: Vec<u32>,
}

/// A `tokenizer.json`, ready to encode from several threads.
pub struct Encoder {
    reference: Reference,
    fast: Option<Engine>,
    why: OnceLock<String>, // why the reference encodes
    sampled: AtomicBool,   // the fast engine was proved on the user's texts
    vocab_size: usize,
    byte_level: bool,
    special: Special,
}

impl Encoder {
    /// `special_tokens` (end of text, …) count as special also where the file does not list them as added; one that it
    /// lists keeps its flags, and one that the vocabulary lacks is passed over.
    pub fn new(json: &[u8], special_tokens: &[String]) -> Result<Self> {
        let file = File::read(json);
        let (reference, fast) = rayon::join(
            || Reference::load(json, special_tokens),
            || {
                file.as_ref()
                    .map_err(String::clone)
                    .and_then(|file| Engine::new(file, special_tokens))
            },
        );
        let mut reference =
            reference.map_err(|error| Error::Argument(format!("not a tokenizer.json: {error}")))?;
        if fast.is_ok() {
            reference.trust_patterns();
        }
        let fast = fast.and_then(|engine| agreeing(engine, &reference));
        let why = OnceLock::new();
        let fast = fast.map_err(|reason| why.set(reason)).ok();
        let vocab_size = match &fast {
            Some(engine) => engine.vocab_size(),
            None => reference.vocab_size(),
        };
        let byte_level = file.is_ok_and(|file| is_byte_level(&file));
        let special = Special::new(reference.special_tokens())
            .map_err(|error| Error::Argument(format!("added_tokens: {error}")))?;
        let encoder = Self {
            reference,
            fast,
            why,
            sampled: AtomicBool::new(false),
            vocab_size,
            byte_level,
            special,
        };
        if let Some(engine) = &encoder.fast {
            let probe = probe_text(engine.added_tokens());
            encoder.prove(&[&probe]); // `why` says where they differ
        }
        Ok(encoder)
    }

    /// The largest token id plus one: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether two texts can be tokenized apart without a change of their bytes.
    pub fn byte_level(&self) -> bool {
        self.byte_level
    }

    /// The id that stands for what the vocabulary lacks.
    pub fn unknown(&self) -> Option<u32> {
        self.reference.unknown()
    }

    /// Whether characters can go without a token; the fast engine has one for every byte.
    pub fn can_drop(&self) -> bool {
        self.fast().is_none_or(|engine| !engine.is_complete())
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.reference.token_to_id(token)
    }

    /// The first special token that a content becomes, but for marks of reasoning.
    pub fn special_in(&self, content: &str) -> Option<u32> {
        if !self.special.is_named_in(content) {
            return None;
        }
        let mut ids = Vec::new();
        self.encode_ids(content, &mut ids).ok()?;
        self.special.first_of(&ids)
    }

    /// The words of a token that `special_in` gives.
    pub fn special_name(&self, id: u32) -> &str {
        self.special.name(id).unwrap_or_default()
    }

    /// "fast" where our own engine encodes, "tokenizers" where the reference does (`why` says why).
    pub fn engine(&self) -> &'static str {
        if self.fast().is_some() {
            "fast"
        } else {
            "tokenizers"
        }
    }

    /// Why the reference encodes; empty where the fast engine does.
    pub fn why(&self) -> &str {
        self.why.get().map_or("", String::as_str)
    }

    fn fast(&self) -> Option<&Engine> {
        self.fast.as_ref().filter(|_| self.why.get().is_none())
    }

    /// The tokens of `text`, none added.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        let mut out = Encoded::default();
        self.encode_into(text, &mut out)?;
        Ok(out)
    }

    /// As `encode`, behind what `out` holds.
    pub fn encode_into(&self, text: &str, out: &mut Encoded) -> Result<()> {
        check_length(text)?;
        let (ids, offsets) = (&mut out.ids, &mut out.offsets);
        let encode = |engine: &Engine| engine.encode(text, 0, true, ids, Some(offsets)).is_ok();
        if self.fast().is_some_and(encode) {
            return Ok(());
        }
        self.encode_reference(text, out)
    }

    /// Ids only, behind those that `ids` holds.
    pub fn encode_ids(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        check_length(text)?;
        if self
            .fast()
            .is_some_and(|engine| engine.encode(text, 0, true, ids, None).is_ok())
        {
            return Ok(());
        }
        let encoding = self.reference_encoding(text, false)?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    fn encode_reference(&self, text: &str, out: &mut Encoded) -> Result<()> {
        let encoding = self.reference_encoding(text, true)?;
        let narrow = |&(start, end): &(usize, usize)| (start as u32, end as u32);
        out.ids.extend_from_slice(encoding.get_ids());
        out.offsets
            .extend(encoding.get_offsets().iter().map(narrow));
        Ok(())
    }

    fn reference_encoding(&self, text: &str, offsets: bool) -> Result<Encoding> {
        let encoding = self.reference.encode(text, offsets);
        encoding.map_err(|error| refused(text, &error))
    }

    /// Tokens of each of `texts`, whose first `shared` bytes are the same: those of a part that all begin with, where the
    /// engine can tell it, and the rest of each.
    pub fn encode_sharing(&self, shared: usize, texts: &[&str], out: &mut Shared) -> Result<()> {
        out.clear(texts.len());
        texts.iter().try_for_each(|text| check_length(text))?;
        if let (Some(engine), [first, _, ..]) = (self.fast(), texts) {
            let cut = engine.restart(first, shared.min(first.len()));
            if cut > 0 && out.fill(engine, texts, cut).is_ok() {
                return Ok(());
            }
            out.clear(texts.len());
        }
        let mut each = texts.iter().zip(&mut out.rests);
        each.try_for_each(|(text, rest)| self.encode_into(text, rest))
    }

    /// Whether nothing is left to be proved on a sample of the user's texts.
    pub fn is_sampled(&self) -> bool {
        self.fast().is_none() || self.sampled.load(Ordering::Relaxed)
    }

    /// Whether the engine is still to be proved on a sample of the user's texts: true once.
    pub fn wants_sample(&self) -> bool {
        self.fast().is_some() && !self.sampled.swap(true, Ordering::Relaxed)
    }

    /// Compare the fast engine with the reference on `texts`; on a difference the reference takes over for good.
    pub fn prove(&self, texts: &[&str]) -> Option<Mismatch> {
        let engine = self.fast()?;
        let difference = |(index, text): (usize, &&str)| {
            let (mut fast, mut reference) = (Encoded::default(), Encoded::default());
            let encoded = engine.encode(text, 0, true, &mut fast.ids, Some(&mut fast.offsets));
            let settled = encoded.is_ok() && self.encode_reference(text, &mut reference).is_ok();
            // Else the engine leaves the text to the reference, or the reference leaves it to nobody.
            (settled && fast != reference).then(|| Mismatch::between(index, &fast, &reference))
        };
        let texts = texts.par_iter().enumerate();
        let mismatch = texts.find_map_first(difference)?;
        let reason = format!("the fast engine differs from tokenizers: {mismatch}");
        self.why.set(reason).is_ok().then_some(mismatch)
    }
}

impl Mismatch {
    fn between(text: usize, fast: &Encoded, reference: &Encoded) -> Self {
        let tokens = |of: &Encoded, at: usize| Some((*of.ids.get(at)?, *of.offsets.get(at)?));
        let mut at = 0;
        while tokens(fast, at) == tokens(reference, at) {
            at += 1;
        }
        let ids = |of: &Encoded| of.ids.iter().skip(at).take(SHOWN).copied().collect();
        let place = tokens(reference, at).or_else(|| tokens(fast, at));
        Self {
            text,
            byte: place.map_or(0, |(_, range)| range.0),
            fast: ids(fast),
            reference: ids(reference),
        }
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            text,
            byte,
            fast,
            reference,
        } = self;
        write!(
            f,
            "text {text}, byte {byte}: ids {fast:?} instead of {reference:?}"
        )
    }
}

/// The engine, if its added tokens have the ids that the reference gives them.
fn agreeing(engine: Engine, reference: &Reference) -> std::result::Result<Engine, String> {
    let same = |(content, id): &(&str, u32)| reference.token_to_id(content) == Some(*id);
    let other = engine
        .added_tokens()
        .find(|token| !same(token))
        .map(|(content, id)| {
            format!("added token {content:?}: the id {id} is not the one that tokenizers gives")
        });
    other.map_or(Ok(engine), Err)
}

/// The added tokens of a `tokenizer.json`, as its JSON has them.
pub fn added_tokens(json: &[u8]) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct Part<'a> {
        #[serde(borrow, default)]
        added_tokens: Option<&'a RawValue>,
    }
    let part: Part = serde_json::from_slice(json)
        .map_err(|error| Error::Argument(format!("not a tokenizer.json: {error}")))?;
    let tokens = part.added_tokens.map_or("[]", RawValue::get);
    Ok(tokens.to_string())
}

fn check_length(text: &str) -> Result<()> {
    match u32::try_from(text.len()) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Argument(format!(
            "a text must be shorter than 4 GiB, got {} bytes",
            text.len()
        ))),
    }
}

fn refused(text: &str, error: &str) -> Error {
    let shown: String = text.chars().take(80).collect();
    Error::Argument(format!("the tokenizer cannot encode {shown:?}: {error}"))
}

/// Byte-level BPE that adds no leading space and whose normalizer, if any, only composes characters.
fn is_byte_level(file: &File) -> bool {
    let kind = |part: &Value| part["type"].as_str().unwrap_or_default().to_string();
    let steps = |part: &Value, list: &str| match part[list].as_array() {
        Some(steps) => steps.clone(),
        None => vec![part.clone()],
    };
    let pre_tokenizers = steps(&file.pre_tokenizer, "pretokenizers");
    let byte_level = |step: &Value| kind(step) == "ByteLevel";
    let composes =
        |step: &Value| step.is_null() || ["NFC", "NFD", "NFKC", "NFKD"].contains(&&*kind(step));
    pre_tokenizers.iter().any(byte_level)
        && !pre_tokenizers
            .iter()
            .any(|step| byte_level(step) && step["add_prefix_space"] != false)
        && steps(&file.normalizer, "normalizers").iter().all(composes)
        && file.model_type() == "BPE"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
