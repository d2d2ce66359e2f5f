//! One row of preferences, candidates or instructions: a prompt with its responses, tokenized into columns.

use super::Shared;
use super::budget::{self, Limits};
use super::chat::{self, Recent, Texts};
use super::columns::{Columns, Head};
use super::{Encoded, Encoder};
use crate::reject::Reject;
use crate::template::{ChatTemplate, Message};

/// A prompt with its responses, as the frame gives them.
pub struct Row<'a> {
    pub row: u64,
    pub prompt: Vec<Message<'a>>,
    pub responses: Vec<Response<'a>>,
    pub tools: Option<&'a str>,
    pub template_kwargs: Option<&'a str>,
}

/// One response; `complete` is false where it was cut, so that no turn end is written.
pub struct Response<'a> {
    pub field: &'static str,
    pub kind: &'static str,
    pub messages: Vec<Message<'a>>,
    pub complete: bool,
    pub score: Option<f32>,
}

/// What tokenizes rows.
#[derive(Clone, Copy)]
pub struct Tokenization<'a> {
    pub encoder: &'a Encoder,
    pub template: &'a ChatTemplate,
    pub limits: Limits,
    pub bos: Option<u32>,
}

/// Append the lines of one row to `out`, or the reason why there are none.
pub fn tokenize_row(work: &Tokenization, row: &Row, out: &mut Columns) {
    let before = (
        out.lengths.len(),
        out.ids.len(),
        out.responses_cut,
        out.apart.len(),
        out.without_bos,
    );
    let mut scratch = std::mem::take(&mut out.scratch);
    let result = append(work, row, &mut scratch, out);
    out.scratch = scratch;
    if let Err(reject) = result {
        out.truncate(before.0, before.1);
        out.responses_cut = before.2;
        out.apart.truncate(before.3);
        out.without_bos = before.4;
        out.rejects.push((row.row, reject));
    }
}

/// What a row needs on its way, kept for the next row.
#[derive(Default)]
pub(super) struct Scratch {
    pub shapes: Recent,
    pub texts: Texts,
    tokens: RowTokens,
}

fn append(
    work: &Tokenization,
    row: &Row,
    scratch: &mut Scratch,
    out: &mut Columns,
) -> Result<(), Reject> {
    let Scratch {
        shapes,
        texts,
        tokens,
    } = scratch;
    chat::render(
        work.template,
        row,
        work.limits.cuts_prompts(),
        shapes,
        texts,
    )?;
    // Where a prompt's tokens stand matters to those who keep it, and to a cut.
    tokens.shared.placeless = out.lean && !work.limits.cuts_prompts();
    tokens.fill(work, texts, row)?;
    if tokens.apart {
        out.apart.push(row.row);
    }
    let Encoded { ids, offsets } = &tokens.shared.prefix;
    check_bos(work, row, ids)?;
    out.without_bos += usize::from(work.bos.is_some() && ids.first() != work.bos.as_ref());
    let kept = budget::prompt(work, &texts.prompt, row, ids, offsets)?;
    let first = out.ids.len();
    for range in &kept.ranges {
        let ids = &ids[range.clone()];
        if tokens.shared.placeless {
            out.push_placeless(ids);
        } else {
            let offsets = &offsets[range.clone()];
            out.push_tokens(ids, offsets, 0, &texts.prompt.parts, false);
        }
    }
    let prompt_length = out.ids.len() - first;
    let head = Head {
        row: row.row,
        number: 0,
        kind: "prompt",
        score: None,
        cut: kept.cut,
    };
    out.end_line(&head, first);
    let room = work.limits.room(prompt_length);
    for (index, response) in row.responses.iter().enumerate() {
        let (ids, offsets, shift) = tokens.response(index);
        let parts = &texts.responses[index].1;
        let first = out.ids.len();
        out.push_tokens(ids, offsets, shift, parts, true);
        let limit = first.saturating_add(room);
        let mut cut = 0;
        if out.ids.len() > limit {
            cut = out.inside[limit..].iter().filter(|inside| **inside).count() as u32;
            out.truncate_tokens(limit);
            out.responses_cut += 1;
        }
        if !out.inside[first..].contains(&true) {
            return Err(budget::no_content(response, prompt_length, work.limits));
        }
        let head = Head {
            row: row.row,
            number: index as u16 + 1,
            kind: response.kind,
            score: response.score,
            cut,
        };
        out.end_line(&head, first);
    }
    Ok(())
}

/// Tokens of a row: the prompt's, which are the shared ones, and each response's behind `skip` that are the prompt's.
#[derive(Default)]
struct RowTokens {
    shared: Shared,
    skip: usize,
    shift: usize, // bytes of the prompt, where the responses were tokenized apart
    apart: bool,
}

impl RowTokens {
    fn response(&self, index: usize) -> (&[u32], &[(u32, u32)], usize) {
        let Encoded { ids, offsets } = &self.shared.rests[index];
        (&ids[self.skip..], &offsets[self.skip..], self.shift)
    }

    fn fill(&mut self, work: &Tokenization, texts: &Texts, row: &Row) -> Result<(), Reject> {
        let bytes = texts.prompt.bytes;
        let whole = || texts.responses.iter().map(|(text, _)| text.as_str());
        let refuse = |error: crate::Error| {
            let (text, rule) = (whole().next().unwrap_or_default(), error.to_string());
            Reject::new("prompt", text, "tokenizer", rule, "drop the row")
        };
        let all: Vec<&str> = whole().collect();
        let shared = &mut self.shared;
        work.encoder
            .encode_sharing(bytes, &all, shared)
            .map_err(refuse)?;
        if let Some(skip) = common_boundary(&shared.rests, bytes) {
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

fn check_bos(work: &Tokenization, row: &Row, ids: &[u32]) -> Result<(), Reject> {
    let twice = matches!((ids, work.bos), ([first, second, ..], Some(bos)) if *first == bos && *second == bos);
    if !twice {
        return Ok(());
    }
    let content = row.prompt[0].content;
    let rule = "a text must begin with one BOS token, here there are two";
    let remedy = "take the BOS token out of the data, or out of the chat template";
    Err(Reject::new("prompt", content, "double_bos", rule, remedy))
}
