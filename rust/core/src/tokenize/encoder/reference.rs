//! `tokenizers`, which decides what the ids are. What it stumbles over is an error in words.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use tokenizers::{AddedToken, Encoding, PostProcessorWrapper, Tokenizer};

use super::bounds::{self, Components};

/// Bytes of an error's value that are shown.
const SHOWN: usize = 200;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

pub struct Reference {
    tokenizer: Tokenizer,
    unknown: Option<u32>,
    has_patterns: bool,
}

impl Reference {
    /// `special_tokens` count as special also where the file does not list them; one that it lists keeps its flags, and
    /// one that the vocabulary lacks is passed over.
    pub fn load(json: &[u8], special_tokens: &[String]) -> Result<Self, String> {
        let file = Components::checked(json).map_err(|words| one_line(&words))?;
        let patterns = file.patterns();
        let mut reference = guarded(|| {
            let mut tokenizer = Tokenizer::from_bytes(json)?;
            // A post-processor adds special tokens, which the template writes, and trims the offsets of spaces, which
            // would hide a token that lies across the boundary of prompt and response.
            tokenizer.with_post_processor(None::<PostProcessorWrapper>);
            tokenizer.with_padding(None);
            tokenizer.with_truncation(None)?;
            let listed = tokenizer.get_added_vocabulary().get_vocab();
            let more: Vec<AddedToken> = special_tokens
                .iter()
                .filter(|token| !listed.contains_key(*token))
                .filter(|token| tokenizer.token_to_id(token).is_some())
                .map(|token| AddedToken::from(token.clone(), true))
                .collect();
            tokenizer.add_special_tokens(more)?;
            Ok(Self {
                tokenizer,
                unknown: None,
                has_patterns: !patterns.is_empty(),
            })
        })?;
        let (token, id) = file.unknown();
        reference.unknown = token.and_then(|token| reference.token_to_id(&token)).or(id);
        bounds::check_patterns(&patterns, |text| reference.encode(text, true).map(|_| ()))?;
        Ok(reference)
    }

    /// Its patterns are known ones, which take time in proportion to a text.
    pub fn trust_patterns(&mut self) {
        self.has_patterns = false;
    }

    /// The id that stands for what the vocabulary lacks.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Ids and contents.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, String)> {
        let added = self.tokenizer.get_added_tokens_decoder().into_iter();
        added
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
    }

    pub fn vocab_size(&self) -> usize {
        let vocab = self.tokenizer.get_vocab(true);
        vocab
            .values()
            .max()
            .map_or(0, |largest| *largest as usize + 1)
    }

    /// Ids with byte offsets, or (`offsets` false) ids alone.
    pub fn encode(&self, text: &str, offsets: bool) -> Result<Encoding, String> {
        if self.has_patterns {
            bounds::check_runs(text)?;
        }
        guarded(|| {
            if offsets {
                self.tokenizer.encode(text, false)
            } else {
                self.tokenizer.encode_fast(text, false)
            }
        })
    }
}

/// What `work` gives; an error or a panic in it as words. Nothing is printed.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                before(panic);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(outer);
    let words = match result {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(words), _) => words.clone(),
            (_, Some(words)) => (*words).to_string(),
            _ => "it cannot be read".to_string(),
        },
    };
    Err(one_line(&words))
}

/// The words in one line, of bounded length.
fn one_line(words: &str) -> String {
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} …", &words[..end]),
        None => words,
    }
}
