//! Special tokens that a content may hold: there they are no text to a model.

use aho_corasick::AhoCorasick;

use crate::template::is_mark;

/// The special tokens of a tokenizer but for the marks of reasoning, which contents are to have.
pub struct Special {
    finder: Option<AhoCorasick>,
    tokens: Vec<(u32, String)>, // by id
}

impl Special {
    pub fn new(tokens: impl Iterator<Item = (u32, String)>) -> Result<Self, String> {
        let mut tokens: Vec<(u32, String)> = tokens
            .filter(|(_, token)| !token.is_empty() && !is_mark(token))
            .collect();
        tokens.sort_unstable();
        let texts = tokens.iter().map(|(_, token)| token);
        let finder = (!tokens.is_empty()).then(|| AhoCorasick::new(texts));
        let finder = finder.transpose().map_err(|error| error.to_string())?;
        Ok(Self { finder, tokens })
    }

    /// Whether the words of one stand in the text.
    pub fn is_named_in(&self, text: &str) -> bool {
        self.finder
            .as_ref()
            .is_some_and(|finder| finder.is_match(text))
    }

    /// The first one of these tokens.
    pub fn first_of(&self, ids: &[u32]) -> Option<u32> {
        ids.iter().copied().find(|id| self.name(*id).is_some())
    }

    pub fn name(&self, id: u32) -> Option<&str> {
        let at = self.tokens.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.tokens[at].1)
    }
}
