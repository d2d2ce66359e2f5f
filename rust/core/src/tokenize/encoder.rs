//! The tokenizer of a `tokenizer.json`, without the special tokens that it would add and with untrimmed byte offsets.

use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer};

use crate::{Error, Result};

/// Tokens of one text; `offsets` are byte ranges of the text. Tokens that share a character carry its whole range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    pub offsets: Vec<(u32, u32)>,
}

/// A `tokenizer.json`, ready to encode from several threads.
pub struct Encoder {
    tokenizer: Tokenizer,
    vocab_size: usize,
    byte_level: bool,
}

impl Encoder {
    /// `special_tokens` (end of text, …) count as special also where the file does not say so; those that the
    /// vocabulary lacks are passed over.
    pub fn new(json: &[u8], special_tokens: &[String]) -> Result<Self> {
        let broken = |error: &dyn std::fmt::Display| {
            Error::Argument(format!("not a tokenizer.json: {error}"))
        };
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| broken(&error))?;
        // A post-processor adds special tokens, which the template writes, and trims the offsets of spaces, which would
        // hide a token that lies across the boundary of prompt and response.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| broken(&error))?;
        let known = special_tokens
            .iter()
            .filter(|token| tokenizer.token_to_id(token).is_some());
        let added: Vec<AddedToken> = known
            .map(|token| AddedToken::from(token.clone(), true))
            .collect();
        tokenizer
            .add_special_tokens(added)
            .map_err(|error| broken(&error))?;
        let vocab_size = tokenizer
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |largest| *largest as usize + 1);
        Ok(Self {
            byte_level: is_byte_level(json),
            tokenizer,
            vocab_size,
        })
    }

    /// The largest token id plus one: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether two texts can be tokenized apart without a change of their bytes.
    pub fn byte_level(&self) -> bool {
        self.byte_level
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// "fast" where our own engine encodes, "tokenizers" where the reference does (`why` says why).
    pub fn engine(&self) -> &'static str {
        "tokenizers"
    }

    /// Why the reference engine encodes; empty where the fast one does.
    pub fn why(&self) -> String {
        "the fast engine is not built in".to_string()
    }

    /// The tokens of `text`, none added.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        let mut out = Encoded::default();
        self.encode_into(text, &mut out)?;
        Ok(out)
    }

    /// As `encode`, behind what `out` holds.
    pub fn encode_into(&self, text: &str, out: &mut Encoded) -> Result<()> {
        let encoding = self.tokenizer.encode(text, false).map_err(|error| {
            Error::Argument(format!("the tokenizer cannot encode {text:?}: {error}"))
        })?;
        let narrow = |&(start, end): &(usize, usize)| (start as u32, end as u32);
        out.ids.extend_from_slice(encoding.get_ids());
        out.offsets
            .extend(encoding.get_offsets().iter().map(narrow));
        Ok(())
    }

    /// Tokens of each of `texts`, whose first `shared` bytes are the same and are tokenized once.
    pub fn encode_sharing(&self, shared: usize, texts: &[&str]) -> Result<Vec<Encoded>> {
        let _ = shared; // every text whole is always right
        texts.iter().map(|text| self.encode(text)).collect()
    }

    /// Compare the fast engine with the reference on `texts`; on a difference the reference takes over for good.
    pub fn prove(&self, texts: &[&str]) -> Option<Mismatch> {
        let _ = texts; // the reference encodes
        None
    }
}

/// Where the fast engine and the reference differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    pub text: usize,       // index into the texts
    pub bytes: (u32, u32), // of the first token that differs
    pub fast: Vec<u32>,    // ids from there on, a few
    pub reference: Vec<u32>,
}

/// Byte-level BPE that adds no leading space and whose normalizer, if any, only composes characters.
fn is_byte_level(json: &[u8]) -> bool {
    let Ok(file) = serde_json::from_slice::<serde_json::Value>(json) else {
        return false;
    };
    let kind = |part: &serde_json::Value| part["type"].as_str().unwrap_or_default().to_string();
    let steps = |part: &serde_json::Value, list: &str| match part[list].as_array() {
        Some(steps) => steps.clone(),
        None => vec![part.clone()],
    };
    let pre_tokenizers = steps(&file["pre_tokenizer"], "pretokenizers");
    let byte_level = |step: &serde_json::Value| kind(step) == "ByteLevel";
    let composes = |step: &serde_json::Value| {
        step.is_null() || ["NFC", "NFD", "NFKC", "NFKD"].contains(&&*kind(step))
    };
    kind(&file["model"]) == "BPE"
        && pre_tokenizers.iter().any(byte_level)
        && !pre_tokenizers
            .iter()
            .any(|step| byte_level(step) && step["add_prefix_space"] != false)
        && steps(&file["normalizer"], "normalizers")
            .iter()
            .all(composes)
}
