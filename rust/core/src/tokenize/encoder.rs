//! The tokenizer of a `tokenizer.json`, without the special tokens that it would add and with untrimmed byte offsets.
//!
//! `tokenizers` is the reference. Our own engine encodes where it knows every component of the file and has given the
//! same ids and offsets on a probe text.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use super::fast::{Engine, File};
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
    fn clear(&mut self) {
        self.ids.clear();
        self.offsets.clear();
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
    reference: Tokenizer,
    fast: Option<Engine>,
    why: OnceLock<String>, // why the reference encodes
    sampled: AtomicBool,   // the fast engine was proved on the user's texts
    vocab_size: usize,
    byte_level: bool,
}

impl Encoder {
    /// `special_tokens` (end of text, …) count as special also where the file does not say so; those that the
    /// vocabulary lacks are passed over.
    pub fn new(json: &[u8], special_tokens: &[String]) -> Result<Self> {
        let file = File::read(json);
        let (reference, fast) = rayon::join(
            || load_reference(json, special_tokens),
            || {
                file.as_ref()
                    .map_err(String::clone)
                    .and_then(|file| Engine::new(file, special_tokens))
            },
        );
        let reference =
            reference.map_err(|error| Error::Argument(format!("not a tokenizer.json: {error}")))?;
        let fast = fast.and_then(|engine| agreeing(engine, &reference));
        let why = OnceLock::new();
        let fast = fast.map_err(|reason| why.set(reason)).ok();
        let vocab_size = match &fast {
            Some(engine) => engine.vocab_size(),
            None => reference
                .get_vocab(true)
                .values()
                .max()
                .map_or(0, |largest| *largest as usize + 1),
        };
        let byte_level = file.is_ok_and(|file| is_byte_level(&file));
        let encoder = Self {
            reference,
            fast,
            why,
            sampled: AtomicBool::new(false),
            vocab_size,
            byte_level,
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

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.reference.token_to_id(token)
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
        self.encode_behind(text, 0, out)
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
        let encoding = self
            .reference
            .encode_fast(text, false)
            .map_err(|error| refused(text, &*error))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The tokens of `text[from..]` as they stand in the tokens of `text`; `from` is 0, or comes from the fast engine.
    fn encode_behind(&self, text: &str, from: usize, out: &mut Encoded) -> Result<()> {
        check_length(text)?;
        let (ids, offsets) = (&mut out.ids, &mut out.offsets);
        let encode = |engine: &Engine| {
            engine
                .encode(&text[from..], from, from == 0, ids, Some(offsets))
                .is_ok()
        };
        if self.fast().is_some_and(encode) {
            return Ok(());
        }
        self.encode_reference(text, out)
    }

    fn encode_reference(&self, text: &str, out: &mut Encoded) -> Result<()> {
        let encoding = self
            .reference
            .encode(text, false)
            .map_err(|error| refused(text, &*error))?;
        let narrow = |&(start, end): &(usize, usize)| (start as u32, end as u32);
        out.ids.extend_from_slice(encoding.get_ids());
        out.offsets
            .extend(encoding.get_offsets().iter().map(narrow));
        Ok(())
    }

    /// Tokens of each of `texts`, whose first `shared` bytes are the same and are tokenized once.
    pub fn encode_sharing(&self, shared: usize, texts: &[&str]) -> Result<Vec<Encoded>> {
        let each = || texts.iter().map(|text| self.encode(text)).collect();
        let (Some(first), Some(engine)) = (texts.first(), self.fast()) else {
            return each();
        };
        let cut = engine.restart(first, shared.min(first.len()));
        if cut == 0 || texts.len() == 1 {
            return each();
        }
        let mut prefix = Encoded::default();
        if engine
            .encode(
                &first[..cut],
                0,
                true,
                &mut prefix.ids,
                Some(&mut prefix.offsets),
            )
            .is_err()
        {
            return each();
        }
        let whole = |text: &&str| {
            let mut out = prefix.clone();
            check_length(text)?;
            if engine
                .encode(
                    &text[cut..],
                    cut,
                    false,
                    &mut out.ids,
                    Some(&mut out.offsets),
                )
                .is_err()
            {
                out.clear();
                self.encode_reference(text, &mut out)?;
            }
            Ok(out)
        };
        texts.iter().map(whole).collect()
    }

    /// Whether the engine is still to be proved on a sample of the user's texts: true once.
    pub fn wants_sample(&self) -> bool {
        self.fast().is_some() && !self.sampled.swap(true, Ordering::Relaxed)
    }

    /// Compare the fast engine with the reference on `texts`; on a difference the reference takes over for good.
    pub fn prove(&self, texts: &[&str]) -> Option<Mismatch> {
        let engine = self.fast()?;
        let (mut fast, mut reference) = (Encoded::default(), Encoded::default());
        for (index, text) in texts.iter().enumerate() {
            fast.clear();
            reference.clear();
            let encoded = engine.encode(text, 0, true, &mut fast.ids, Some(&mut fast.offsets));
            if encoded.is_err()
                || self.encode_reference(text, &mut reference).is_err()
                || fast == reference
            {
                continue; // the engine leaves the text to the reference, or the reference leaves it to nobody
            }
            let mismatch = Mismatch::between(index, &fast, &reference);
            let reason = format!("the fast engine differs from tokenizers: {mismatch}");
            return self.why.set(reason).is_ok().then_some(mismatch);
        }
        None
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

fn load_reference(json: &[u8], special_tokens: &[String]) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_bytes(json)?;
    // A post-processor adds special tokens, which the template writes, and trims the offsets of spaces, which would
    // hide a token that lies across the boundary of prompt and response.
    tokenizer.with_post_processor(None::<PostProcessorWrapper>);
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None)?;
    let known: Vec<_> = special_tokens
        .iter()
        .filter(|token| tokenizer.token_to_id(token).is_some())
        .map(|token| tokenizers::AddedToken::from(token.clone(), true))
        .collect();
    tokenizer.add_special_tokens(known)?;
    Ok(tokenizer)
}

/// The engine, if its added tokens have the ids that the reference gives them.
fn agreeing(engine: Engine, reference: &Tokenizer) -> std::result::Result<Engine, String> {
    let same = |(content, id): &(&str, u32)| reference.token_to_id(content) == Some(*id);
    let other = engine
        .added_tokens()
        .find(|token| !same(token))
        .map(|(content, id)| {
            format!("added token {content:?}: the id {id} is not the one that tokenizers gives")
        });
    other.map_or(Ok(engine), Err)
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

fn refused(text: &str, error: &dyn std::error::Error) -> Error {
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
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const LINE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    /// Letters that stand for the bytes, as the library gives them.
    fn alphabet() -> Vec<char> {
        let mut letters: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
            .into_iter()
            .collect();
        letters.sort_unstable();
        letters
    }

    fn byte_level(pre_tokenizer: &Value, merges: &[&str]) -> Value {
        let tokens = alphabet()
            .into_iter()
            .map(String::from)
            .chain(merges.iter().map(|merge| merge.replace(' ', "")));
        let vocab: serde_json::Map<String, Value> = tokens
            .zip(0..)
            .map(|(token, id)| (token, json!(id)))
            .collect();
        let added = |content: &str, id: usize, normalized: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": normalized, "special": !normalized});
        let size = vocab.len();
        json!({
            "version": "1.0", "truncation": null, "padding": null, "post_processor": null, "decoder": null,
            "added_tokens": [added("<e>", size, false), added("  ", size + 1, true)],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": pre_tokenizer,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "vocab": vocab, "merges": merges},
        })
    }

    fn gpt2(merges: &[&str]) -> Value {
        byte_level(
            &json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
            merges,
        )
    }

    fn qwen2() -> Value {
        let split = json!({"type": "Split", "pattern": {"Regex": LINE}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        byte_level(
            &json!({"type": "Sequence", "pretokenizers": [split, bytes]}),
            MERGES,
        )
    }

    fn mistral() -> Value {
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
        let tokens = [
            "<unk>", "▁", "a", "b", "s", "n", "中", "▁a", "ab", "▁ab", "▁▁",
        ]
        .map(String::from);
        let vocab: serde_json::Map<String, Value> = bytes
            .chain(tokens)
            .zip(0..)
            .map(|(token, id)| (token, json!(id)))
            .collect();
        let mut file = byte_level(
            &json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
            &[],
        );
        file["normalizer"] = Value::Null;
        file["added_tokens"] = json!([]);
        file["model"] = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": ["▁ ▁", "a b", "▁ a", "▁ ab"]});
        file
    }

    const MERGES: &[&str] = &[
        "a b", "Ġ a", "Ġ ab", "ä ¸", "ä¸ Ń", "Ċ Ċ", "ab ab", "n '", "Ġ Ġ",
    ];

    fn encoder(file: &Value) -> Encoder {
        let encoder = Encoder::new(file.to_string().as_bytes(), &[]).unwrap();
        assert_eq!((encoder.engine(), encoder.why()), ("fast", ""));
        encoder
    }

    fn reference(encoder: &Encoder, text: &str) -> Encoded {
        let mut out = Encoded::default();
        encoder.encode_reference(text, &mut out).unwrap();
        out
    }

    fn texts() -> impl Strategy<Value = String> {
        let parts = prop_oneof![
            "[abn '中\n\u{301}é.0-9<e>]{0,12}",
            "[ ab]{0,6}",
            Just("<e>".to_string()),
            Just("\n\nHuman: ab".to_string()),
            any::<String>(),
        ];
        prop::collection::vec(parts, 0..8).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn ids_and_offsets_equal_the_reference(texts in prop::collection::vec(texts(), 1..4)) {
            for file in [gpt2(MERGES), qwen2(), mistral()] {
                let encoder = encoder(&file);
                let mut all = Encoded::default();
                for text in &texts {
                    let expected = reference(&encoder, text);
                    prop_assert_eq!(encoder.encode(text).unwrap(), expected.clone());
                    let before = all.clone();
                    encoder.encode_into(text, &mut all).unwrap();
                    prop_assert_eq!(&all.ids[..before.ids.len()], &before.ids[..]);
                    prop_assert_eq!(&all.offsets[before.offsets.len()..], &expected.offsets[..]);
                    let mut ids = Vec::new();
                    encoder.encode_ids(text, &mut ids).unwrap();
                    prop_assert_eq!(ids, expected.ids);
                }
            }
        }

        #[test]
        fn what_is_shared_is_encoded_as_if_it_were_not(shared in texts(), ends in prop::collection::vec(texts(), 0..4), less in 0..4usize) {
            let whole: Vec<String> = ends.iter().map(|end| format!("{shared}{end}")).collect();
            let whole: Vec<&str> = whole.iter().map(String::as_str).collect();
            for file in [gpt2(MERGES), qwen2(), mistral()] {
                let encoder = encoder(&file);
                let expected: Vec<Encoded> = whole.iter().map(|text| reference(&encoder, text)).collect();
                prop_assert_eq!(encoder.encode_sharing(shared.len().saturating_sub(less), &whole).unwrap(), expected);
            }
        }
    }

    #[test]
    fn a_difference_is_found_and_the_reference_takes_over() {
        let (file, other) = (gpt2(MERGES).to_string(), gpt2(&["a b"]).to_string());
        let mut encoder = Encoder::new(file.as_bytes(), &[]).unwrap();
        encoder.reference = load_reference(other.as_bytes(), &[]).unwrap();
        assert_eq!(encoder.prove(&["b", "n"]), None);
        let mismatch = encoder.prove(&["b", "ab ab"]).unwrap();
        assert_eq!((mismatch.text, mismatch.byte), (1, 2));
        assert_eq!(encoder.engine(), "tokenizers");
        assert!(
            encoder.why().contains("text 1, byte 2"),
            "{}",
            encoder.why()
        );
        assert_eq!(
            encoder.encode("ab ab").unwrap(),
            reference(&encoder, "ab ab")
        );
        assert_eq!(encoder.prove(&["ab ab"]), None);
    }

    #[test]
    fn what_is_unknown_is_named() {
        let why = |change: &dyn Fn(&mut Value)| {
            let mut file = gpt2(MERGES);
            change(&mut file);
            let encoder = Encoder::new(file.to_string().as_bytes(), &[]).unwrap();
            assert_eq!(encoder.engine(), "tokenizers");
            encoder.why().to_string()
        };
        assert!(
            why(&|file| file["normalizer"] = json!({"type": "Lowercase"}))
                .contains("normalizer: \"Lowercase\"")
        );
        assert!(
            why(&|file| file["pre_tokenizer"]["add_prefix_space"] = json!(true))
                .contains("add_prefix_space")
        );
        assert!(why(&|file| file["pre_tokenizer"]["new_flag"] = json!(1)).contains("new_flag"));
        assert!(why(&|file| file["model"]["dropout"] = json!(0.1)).contains("dropout"));
        assert!(
            why(&|file| file["added_tokens"][0]["single_word"] = json!(true))
                .contains("single_word")
        );
    }
}
