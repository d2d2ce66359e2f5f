//! The parts of a `tokenizer.json` that decide on ids, read with as few copies as JSON allows.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// A `tokenizer.json`; the model is read on demand.
#[derive(Deserialize)]
pub struct File<'a> {
    #[serde(default)]
    pub normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
    #[serde(borrow)]
    model: &'a RawValue,
}

/// One entry of `added_tokens`; a flag that we do not know makes it unreadable.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // the file's flags
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    pub normalized: bool,
    #[allow(dead_code)] // ids do not depend on it
    pub special: bool,
}

/// A BPE model; a field that we do not know makes it unreadable.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model<'a> {
    #[serde(rename = "type")]
    _kind: Bpe,
    pub dropout: Option<f32>,
    #[serde(rename = "unk_token")]
    _unk_token: Option<String>, // without effect where every byte has a token
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    #[serde(rename = "fuse_unk")]
    _fuse_unk: Option<bool>,
    pub byte_fallback: Option<bool>,
    pub ignore_merges: Option<bool>,
    #[serde(borrow)]
    pub vocab: Vocab<'a>,
    #[serde(borrow)]
    pub merges: Vec<Merge<'a>>,
}

#[derive(Deserialize)]
enum Bpe {
    #[serde(rename = "BPE")]
    Bpe,
}

/// Tokens with their ids, in the file's order.
pub struct Vocab<'a>(pub Vec<(Cow<'a, str>, u32)>);

/// Left and right side of a merge, written "a b" or ["a", "b"].
pub struct Merge<'a>(pub Cow<'a, str>, pub Cow<'a, str>);

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> File<'a> {
    pub fn read(json: &'a [u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| error.to_string())
    }

    /// `BPE`, `Unigram`, …, empty where the file does not say.
    pub fn model_type(&self) -> String {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(rename = "type", default)]
            kind: String,
        }
        serde_json::from_str::<Kind>(self.model.get()).map_or(String::new(), |model| model.kind)
    }

    pub fn bpe(&self) -> Result<Model<'a>, String> {
        serde_json::from_str(self.model.get()).map_err(|error| {
            let kind = self.model_type();
            if kind == "BPE" {
                format!("model: {error}")
            } else {
                format!("model: type {kind:?} is left to tokenizers")
            }
        })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vec<(Cow<'de, str>, u32)>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("tokens with ids")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = Vec::with_capacity(1 << 16);
                while let Some((Text(token), id)) = map.next_entry()? {
                    entries.push((token, id));
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Entries).map(Vocab)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sides;
        impl<'de> Visitor<'de> for Sides {
            type Value = Merge<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                let (left, right) = sides(text)?;
                Ok(Merge(Cow::Borrowed(left), Cow::Borrowed(right)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                let (left, right) = sides(text)?;
                Ok(Merge(Cow::Owned(left.into()), Cow::Owned(right.into())))
            }
            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
                match (
                    seq.next_element()?,
                    seq.next_element()?,
                    seq.next_element::<Text>()?,
                ) {
                    (Some(Text(left)), Some(Text(right)), None) => Ok(Merge(left, right)),
                    _ => Err(S::Error::custom("a merge has two sides")),
                }
            }
        }
        deserializer.deserialize_any(Sides)
    }
}

fn sides<E: Error>(text: &str) -> Result<(&str, &str), E> {
    match text.split_once(' ') {
        Some((left, right)) if !right.contains(' ') && !text.starts_with("#version") => {
            Ok((left, right))
        }
        _ => Err(E::custom(format!(
            "the merge {text:?} does not have two sides"
        ))),
    }
}
