//! The tokenizer of a `tokenizer.json`, without the special tokens that it would add and with untrimmed byte offsets.

use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer};

use crate::{Error, Result};

/// Tokens of one text; `offsets` are byte ranges of the text. Tokens that share a character carry its whole range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    pub offsets: Vec<(usize, usize)>,
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

    /// The tokens of `text`, none added.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        let encoding = self.tokenizer.encode(text, false).map_err(|error| {
            Error::Argument(format!("the tokenizer cannot encode {text:?}: {error}"))
        })?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
        })
    }
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
