//! A row's texts as tokens: encoded once, and split at the boundary of prompt and response.

use std::ops::RangeInclusive;

use super::budget;
use super::coverage::dropped;
use super::encoder::{Encoded, Shared};
use super::input::{Boundary, Row, Tokenization};
use super::texts::Texts;
use crate::Error;
use crate::reject::Reject;

/// Tokens of a row: the prompt's, which are the shared ones, and each response's behind `skip` that are the prompt's.
#[derive(Default)]
pub(super) struct RowTokens {
    pub shared: Shared,
    skip: usize,
    shift: usize, // bytes of the prompt, where the responses were tokenized apart
    pub apart: bool,
}

impl RowTokens {
    pub fn response(&self, index: usize) -> (&[u32], &[(u32, u32)], usize) {
        let Encoded { ids, offsets } = &self.shared.rests[index];
        (&ids[self.skip..], &offsets[self.skip..], self.shift)
    }

    /// Whether the first tokens are those of the prompt alone, where characters without a token have shifted places.
    fn is_prompt(&self, work: &Tokenization, texts: &[&str], bytes: usize, skip: usize) -> bool {
        let whole = |(text, tokens): (&&str, &Encoded)| {
            dropped(text, &(0..text.len()), &tokens.offsets, 0) == 0
        };
        if texts.iter().zip(&self.shared.rests).all(whole) {
            return true;
        }
        let first = &self.shared.rests[0].ids[..skip];
        let alone = work.encoder.encode(&texts[0][..bytes]);
        alone.is_ok_and(|alone| alone.ids == first)
    }

    pub fn fill(&mut self, work: &Tokenization, texts: &Texts, row: &Row) -> Result<(), Reject> {
        let bytes = texts.prompt.bytes;
        let whole = || texts.responses.iter().map(|(text, _)| text.as_str());
        let refuse = |error: Error| {
            let (text, rule) = (whole().next().unwrap_or_default(), error.to_string());
            Reject::new("prompt", text, "tokenizer", rule, "drop the row")
        };
        let all: Vec<&str> = whole().collect();
        let shared = &mut self.shared;
        work.encoder
            .encode_sharing(bytes, &all, shared)
            .map_err(refuse)?;
        let skip = match work.limits.boundary {
            Boundary::Join => Some(common_beginning(&shared.rests, bytes)),
            Boundary::Split | Boundary::Error => {
                let edge = || {
                    let content = texts.prompt.parts.content.as_ref();
                    let least = content.map_or(0, |content| content.range.end);
                    let cut = texts.prompt.cut; // no generation ends at the byte
                    cut.then(|| common_edge(&shared.rests, least..=bytes))?
                };
                common_boundary(&shared.rests, bytes).or_else(edge)
            }
        };
        let skip = skip
            .filter(|skip| !work.encoder.can_drop() || self.is_prompt(work, &all, bytes, *skip));
        let shared = &mut self.shared;
        if let Some(skip) = skip {
            (self.skip, self.shift, self.apart) = (skip, 0, false);
            shared.prefix.ids.extend(&shared.rests[0].ids[..skip]);
            if !shared.placeless {
                let offsets = &shared.rests[0].offsets[..skip];
                shared.prefix.offsets.extend(offsets);
            }
            return Ok(());
        }
        let prompt = &all[0][..bytes];
        budget::check_apart(work, row, prompt)?;
        (self.skip, self.shift, self.apart) = (0, bytes, true);
        // What generation sees: the prompt's tokens stand before the response's first byte is known.
        let tails: Vec<&str> = all.iter().map(|text| &text[bytes..]).collect();
        work.encoder
            .encode_sharing(0, &tails, shared)
            .map_err(refuse)?;
        work.encoder
            .encode_into(prompt, &mut shared.prefix)
            .map_err(refuse)
    }
}

/// Tokens that all texts begin with, the last of which ends at one of these bytes.
fn common_edge(texts: &[Encoded], edges: RangeInclusive<usize>) -> Option<usize> {
    let shared = common_beginning(texts, *edges.end());
    let (_, end) = texts.first()?.offsets[..shared].last()?;
    edges.contains(&(*end as usize)).then_some(shared)
}

/// Tokens that all texts begin with and that end at byte `boundary` or before.
fn common_beginning(texts: &[Encoded], boundary: usize) -> usize {
    let Some((first, others)) = texts.split_first() else {
        return 0;
    };
    let before = |at: &(u32, u32)| at.1 as usize <= boundary;
    let count = first.offsets.iter().take_while(|at| before(at)).count();
    others.iter().fold(count, |count, text| {
        let pairs = first.ids[..count].iter().zip(&text.ids);
        pairs.take_while(|(one, other)| one == other).count()
    })
}

/// Tokens before byte `boundary`, the same for all texts; None where a token lies across it or they differ.
fn common_boundary(texts: &[Encoded], boundary: usize) -> Option<usize> {
    let first = texts.first()?;
    let count = |tokens: &Encoded| {
        tokens
            .offsets
            .partition_point(|(start, _)| (*start as usize) < boundary)
    };
    let across = |tokens: &Encoded, count: usize| {
        tokens.offsets[..count]
            .iter()
            .rev()
            .take(8)
            .any(|(_, end)| *end as usize > boundary)
    };
    let length = count(first);
    let fits = |tokens: &Encoded| {
        count(tokens) == length
            && !across(tokens, length)
            && tokens.ids[..length] == first.ids[..length]
    };
    texts.iter().all(fits).then_some(length)
}
