//! Which of the engine's families a `tokenizer.json` belongs to, told from every component and flag.

use serde_json::{Value, json};

use super::file::{File, Model};
use super::spaces::Prefix;

/// How a text is cut into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Gpt2,
    Cl100k { digits: usize },
    O200k,
    Falcon,
    Spaces { each: bool },
}

/// A BPE that the engine knows: byte-level, or in SentencePiece's manner (`Cut::Spaces`).
#[derive(Debug, Clone, Copy)]
pub struct Family {
    pub nfc: bool,
    pub cut: Cut,
    pub prefix: Prefix,
}

const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const SPACES: &str = r"\s+(?!\S)|\s+";

type Known<T> = Result<T, String>;

impl Family {
    /// Says which component is unknown.
    pub fn of(file: &File, model: &Model) -> Known<Self> {
        let none = |name: &str, part: &Option<String>| match part.as_deref() {
            None | Some("") => Ok(()),
            Some(text) => Err(format!("model: {name} {text:?}")),
        };
        none(
            "continuing_subword_prefix",
            &model.continuing_subword_prefix,
        )?;
        none("end_of_word_suffix", &model.end_of_word_suffix)?;
        if model.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err("model: dropout".into());
        }
        if let Some((cut, prefix)) = spaces(&file.normalizer, &file.pre_tokenizer) {
            return Ok(Self {
                nfc: false,
                cut,
                prefix,
            });
        }
        let nfc = normalizer(&file.normalizer)?;
        let cut = pre_tokenizer(&file.pre_tokenizer)?;
        Ok(Self {
            nfc,
            cut,
            prefix: Prefix::None,
        })
    }
}

/// The ways in which SentencePiece's models are written: by normalizers (Llama 2, Gemma) or by `Metaspace` (Mistral).
fn spaces(normalizer: &Value, pre_tokenizer: &Value) -> Option<(Cut, Prefix)> {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let whole = Cut::Spaces { each: false };
    if pre_tokenizer.is_null() || *pre_tokenizer == split {
        if *normalizer == json!({"type": "Sequence", "normalizers": [prepend, replace]}) {
            return Some((whole, Prefix::Every));
        }
        return (*normalizer == replace).then_some((whole, Prefix::None));
    }
    let fields = ["replacement", "prepend_scheme", "split"];
    with_fields(pre_tokenizer, "pre_tokenizer", &fields).ok()?;
    let known = kind(pre_tokenizer) == "Metaspace" && pre_tokenizer["replacement"] == "▁";
    let prefix = match pre_tokenizer["prepend_scheme"].as_str()? {
        "never" => Prefix::None,
        "first" => Prefix::First,
        "always" => Prefix::Parts,
        _ => return None,
    };
    let each = pre_tokenizer["split"].as_bool()?;
    (known && normalizer.is_null()).then_some((Cut::Spaces { each }, prefix))
}

fn normalizer(part: &Value) -> Known<bool> {
    match kind(part) {
        "" if part.is_null() => Ok(false),
        "NFC" => with_fields(part, "normalizer", &[]).map(|()| true),
        "Sequence" => {
            let steps = steps(part, "normalizer", "normalizers")?;
            let known: Known<Vec<bool>> = steps.iter().map(normalizer).collect();
            Ok(known?.contains(&true))
        }
        other => Err(format!("normalizer: {other:?}")),
    }
}

fn pre_tokenizer(part: &Value) -> Known<Cut> {
    match kind(part) {
        "ByteLevel" => byte_level(part, true).map(|()| Cut::Gpt2),
        "Sequence" => match steps(part, "pre_tokenizer", "pretokenizers")?.as_slice() {
            [only] => pre_tokenizer(only),
            [split, bytes] => {
                byte_level(bytes, false)?;
                pattern(split)
            }
            [punctuation, bytes, digits, split] => {
                falcon(punctuation, bytes, digits, split).map(|()| Cut::Falcon)
            }
            other => Err(format!("pre_tokenizer: a sequence of {}", other.len())),
        },
        other => Err(format!("pre_tokenizer: {other:?}")),
    }
}

/// `ByteLevel` with or without GPT-2's pattern, and without a leading space.
fn byte_level(part: &Value, regex: bool) -> Known<()> {
    let refuse = || Err(format!("pre_tokenizer: {part}"));
    with_fields(
        part,
        "pre_tokenizer",
        &["add_prefix_space", "trim_offsets", "use_regex"],
    )?;
    let has_regex = part.get("use_regex").is_none_or(|flag| flag == true);
    if kind(part) != "ByteLevel" || part["add_prefix_space"] != false || has_regex != regex {
        return refuse();
    }
    Ok(())
}

/// A `Split` by one of the patterns that have a scanner.
fn pattern(part: &Value) -> Known<Cut> {
    let refuse = || Err(format!("pre_tokenizer: {part}"));
    with_fields(part, "pre_tokenizer", &["pattern", "behavior", "invert"])?;
    if kind(part) != "Split" || part["behavior"] != "Isolated" || part["invert"] != false {
        return refuse();
    }
    let Some(regex) = part["pattern"]["Regex"].as_str() else {
        return refuse();
    };
    let cl100k = |digits: &str, line: &str| {
        format!(
            r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{line}|{SPACES}"
        )
    };
    for (written, digits) in [(r"\p{N}{1,3}", 3), (r"\p{N}", 1)] {
        if [r"\s*[\r\n]+", r"\s*[\r\n]"]
            .iter()
            .any(|line| regex == cl100k(written, line))
        {
            return Ok(Cut::Cl100k { digits });
        }
    }
    let lead = r"[^\r\n\p{L}\p{N}]?";
    let (high, low) = (
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
    );
    let o200k = format!(
        r"{lead}{high}*{low}+{CONTRACTIONS}?|{lead}{high}+{low}*{CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{SPACES}"
    );
    if regex == o200k {
        Ok(Cut::O200k)
    } else {
        refuse()
    }
}

fn falcon(punctuation: &Value, bytes: &Value, digits: &Value, split: &Value) -> Known<()> {
    let is = |part: &Value, wanted: Value| {
        if *part == wanted {
            Ok(())
        } else {
            Err(format!("pre_tokenizer: {part}"))
        }
    };
    is(
        punctuation,
        json!({"type": "Punctuation", "behavior": "Contiguous"}),
    )?;
    byte_level(bytes, true)?;
    is(
        digits,
        json!({"type": "Digits", "individual_digits": false}),
    )?;
    let three = json!({"Regex": "[0-9][0-9][0-9]"});
    is(
        split,
        json!({"type": "Split", "pattern": three, "behavior": "Isolated", "invert": false}),
    )
}

fn kind(part: &Value) -> &str {
    part["type"].as_str().unwrap_or_default()
}

fn steps(part: &Value, name: &str, list: &str) -> Known<Vec<Value>> {
    with_fields(part, name, &[list])?;
    let steps = part[list].as_array().cloned();
    steps.ok_or_else(|| format!("{name}: no list {list}"))
}

/// Refuse fields other than these.
fn with_fields(part: &Value, name: &str, fields: &[&str]) -> Known<()> {
    let keys = part
        .as_object()
        .into_iter()
        .flat_map(|object| object.keys());
    match keys
        .filter(|key| *key != "type")
        .find(|key| !fields.contains(&key.as_str()))
    {
        Some(key) => Err(format!(
            "{name}: {} has the unknown field {key:?}",
            kind(part)
        )),
        None => Ok(()),
    }
}
