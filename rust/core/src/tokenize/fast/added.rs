//! Added tokens: found in the text before anything else, the leftmost first, the longest of those that begin together.

use aho_corasick::Span;
use aho_corasick::packed::Searcher;

use super::file::AddedToken;

/// A set of added tokens to look for.
#[derive(Default)]
pub struct Finder {
    heads: Vec<[u8; 2]>,        // the first two bytes that a token may have
    searcher: Option<Searcher>, // of heads; none where the processor has no such instructions
    tokens: Vec<Token>,         // longest first
}

struct Token {
    content: Box<str>,
    id: u32,
    lstrip: bool,
    rstrip: bool,
}

/// A token in the text, with the spaces that it takes along.
pub struct Found {
    pub start: usize,
    pub end: usize,
    pub id: u32,
}

impl Finder {
    /// Says why where the tokens are of a kind that is left to `tokenizers`.
    pub fn new(tokens: &[AddedToken]) -> Result<Self, String> {
        let strips = tokens.iter().any(|token| token.lstrip || token.rstrip);
        let mut finder = Self::default();
        for token in tokens {
            let refuse = |what: &str| Err(format!("added token {:?}: {what}", token.content));
            let Some(head) = token.content.as_bytes().first_chunk::<2>() else {
                return refuse("it has one byte only");
            };
            if token.single_word {
                return refuse("single_word");
            }
            let edges = token.content.trim() != token.content;
            if strips && edges {
                return refuse("it begins or ends with a space where others strip spaces");
            }
            if !finder.heads.contains(head) {
                finder.heads.push(*head);
            }
            finder.tokens.push(Token {
                content: token.content.as_str().into(),
                id: token.id,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
            });
        }
        if finder.heads.len() > 32 {
            return Err(format!(
                "added tokens: {} different beginnings",
                finder.heads.len()
            ));
        }
        finder.searcher = Searcher::new(&finder.heads);
        finder
            .tokens
            .sort_by_key(|token| std::cmp::Reverse(token.content.len()));
        Ok(finder)
    }

    /// Contents and ids.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens.iter().map(|token| (&*token.content, token.id))
    }

    /// Whether no token reaches from a visible character to a space behind it.
    pub fn divisible(&self) -> bool {
        let divides = |pair: &[u8]| pair[0] != b' ' && pair[1] == b' ';
        let reaches = |token: &Token| token.content.as_bytes().windows(2).any(divides);
        !self
            .tokens
            .iter()
            .any(|token| token.lstrip || token.rstrip || reaches(token))
    }

    /// The first token at or after byte `from`; spaces before `from` are not taken along.
    pub fn find(&self, text: &str, from: usize) -> Option<Found> {
        let bytes = text.as_bytes();
        let mut at = self.candidate(bytes, from)?;
        loop {
            let here = self
                .tokens
                .iter()
                .find(|token| bytes[at..].starts_with(token.content.as_bytes()));
            if let Some(token) = here {
                let mut found = Found {
                    start: at,
                    end: at + token.content.len(),
                    id: token.id,
                };
                if token.lstrip {
                    found.start = from + text[from..at].trim_end().len();
                }
                if token.rstrip {
                    found.end = text.len() - text[found.end..].trim_start().len();
                }
                return Some(found);
            }
            at = self.candidate(bytes, at + 1)?;
        }
    }

    /// The first place at or after `from` where a token's first two bytes stand.
    fn candidate(&self, text: &[u8], from: usize) -> Option<usize> {
        if self.heads.is_empty() {
            return None;
        }
        if let Some(searcher) = &self.searcher {
            let span = Span::from(from..text.len());
            return searcher.find_in(text, span).map(|found| found.start());
        }
        let begins = |pair: &[u8]| self.heads.iter().any(|head| head == pair);
        let place = text.get(from..)?.windows(2).position(begins)?;
        Some(from + place)
    }
}
