//! One row of preferences, candidates or instructions: a prompt with its responses, tokenized into columns.

use super::columns::{Columns, Head, Scratch};
use super::encoder::Encoded;
use super::input::{Boundary, Row, Tokenization};
use super::texts::{FoundSpecial, Notes, Texts};
use super::{budget, chat, identical};
use crate::reject::Reject;

/// Append the lines of one row to `out`, or the reason why there are none. The coverage counts what was tokenized, also of a
/// row that is refused: a tokenizer that knows nothing of the texts is why rows are.
pub fn tokenize_row(work: &Tokenization, row: &Row, out: &mut Columns) {
    let before = (
        out.lengths.len(),
        out.ids.len(),
        out.responses_cut,
        out.apart.len(),
        out.without_bos,
        out.notes,
    );
    let mut scratch = std::mem::take(&mut out.scratch);
    let result = append(work, row, &mut scratch, out);
    out.scratch = scratch;
    if let Err(reject) = result {
        out.truncate(before.0, before.1);
        out.responses_cut = before.2;
        out.apart.truncate(before.3);
        out.without_bos = before.4;
        out.notes = before.5;
        out.rejects.push((row.row, reject));
    }
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
    chat::render(work, row, shapes, texts)?;
    out.notes += texts.notes;
    out.notes += special_tokens(work, row, texts);
    if is_reversed(row) {
        out.notes += Notes {
            scores_reversed: 1,
            first_reversed_row: Some(row.row),
            ..Notes::default()
        };
    }
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
            out.push_tokens(ids, offsets, 0, &texts.prompt.parts, false, false);
        }
    }
    let prompt_length = out.ids.len() - first;
    let line = out.lengths.len();
    let head = Head {
        row: row.row,
        number: 0,
        kind: "prompt",
        score: None,
        cut: kept.cut,
    };
    out.end_line(&head, first);
    let room = work.limits.room(prompt_length);
    let whole = work.limits.boundary == Boundary::Join;
    for (index, response) in row.responses.iter().enumerate() {
        let (ids, offsets, shift) = tokens.response(index);
        let (text, parts) = &texts.responses[index];
        let first = out.ids.len();
        out.push_tokens(ids, offsets, shift, parts, true, whole);
        out.coverage
            .add_tokens(&out.ids[first..], work.encoder.unknown());
        if let (true, Some(content)) = (work.encoder.can_drop(), &parts.content) {
            out.coverage.add_bytes(text, &content.range, offsets, shift);
        }
        let limit = first.saturating_add(room);
        let mut cut = 0;
        if out.ids.len() > limit {
            cut = out.inside[limit..].iter().filter(|inside| **inside).count() as u32;
            out.truncate_tokens(limit);
            out.responses_cut += 1;
        }
        let there = match parts.content {
            Some(_) => &out.inside[first..],
            None => &out.mask[first..], // tool calls alone
        };
        if !there.contains(&true) {
            return Err(budget::no_content(response, prompt_length, work.limits));
        }
        if !out.mask[first..].contains(&true) {
            return Err(budget::no_answer(response));
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
    if work.refuse_identical {
        identical::check(row, out, line)?;
    }
    Ok(())
}

/// Whether the chosen response of a pair has a lower score than the rejected one.
fn is_reversed(row: &Row) -> bool {
    match &row.responses[..] {
        [chosen, rejected] if chosen.kind == "chosen" => {
            matches!((chosen.score, rejected.score), (Some(won), Some(lost)) if won < lost)
        }
        _ => false,
    }
}

/// Contents that hold special tokens. An end of turn that ends the answer is none of them.
fn special_tokens(work: &Tokenization, row: &Row, texts: &Texts) -> Notes {
    let mut notes = Notes::default();
    let mut look = |field: &'static str, content: &str| {
        if let Some(id) = work.encoder.special_in(content) {
            let row = row.row;
            notes.special_tokens += 1;
            let first = notes.first_special;
            notes.first_special = first.or(Some(FoundSpecial { row, field, id }));
        }
    };
    for message in row.prompt.iter() {
        look("prompt", &message.content);
    }
    for (response, (text, parts)) in row.responses.iter().zip(&texts.responses) {
        let earlier = response.messages.len().saturating_sub(1);
        for message in &response.messages[..earlier] {
            look(response.field, &message.content);
        }
        if let Some(content) = &parts.content {
            let part = |range| text.get(range).unwrap_or_default();
            let (shown, behind) = (
                part(content.range.clone()),
                part(content.range.end..parts.stop),
            );
            look(
                response.field,
                chat::without_own_end(shown, behind, work.eos),
            );
        }
    }
    notes
}

fn check_bos(work: &Tokenization, row: &Row, ids: &[u32]) -> Result<(), Reject> {
    let twice = matches!((ids, work.bos), ([first, second, ..], Some(bos)) if *first == bos && *second == bos);
    if !twice {
        return Ok(());
    }
    let content = &row.prompt[0].content;
    let rule = "a text must begin with one BOS token, here there are two";
    let remedy = "take the BOS token out of the data, or out of the chat template";
    Err(Reject::new("prompt", content, "double_bos", rule, remedy))
}
