//! A row of a file straight into lines of the segments table: parsed, rendered and tokenized, with no frame in between.

use std::borrow::Cow;

use crate::formats::{
    Candidates, Format, Instruction, Kind, Pair, Rows, parse_candidates, parse_instruction,
    parse_pair,
};
use crate::message::Message;
use crate::tokenize::{Columns, Response, Row, Tokenization, tokenize_row};

/// Append the lines of row `number`, a JSON text of `format`, to `out`, or the reason why there are none.
pub fn prepare_row(
    work: &Tokenization,
    text: &[u8],
    number: u64,
    format: Format,
    rows: Rows,
    out: &mut Columns,
) {
    let parsed = match format.kind() {
        Kind::Candidates => parse_candidates(text, rows, false, |set, _| {
            tokenize_row(work, &of_candidates(set, number), out);
        }),
        Kind::Instructions | Kind::Ranked => {
            parse_instruction(text, format, rows, false, |found, _| {
                tokenize_row(work, &of_instruction(found, number), out);
            })
        }
        Kind::Preferences => parse_pair(text, format, rows, false, |pair, _| {
            tokenize_row(work, &of_pair(pair, number), out);
        }),
    };
    if let Err(reject) = parsed {
        out.rejects.push((number, reject));
    }
}

fn of_pair<'a>(pair: &'a Pair, row: u64) -> Row<'a> {
    let side = |name, messages: &'a [Message<'a>], complete, score| Response {
        field: name,
        kind: name,
        messages: Cow::Borrowed(messages),
        complete,
        score,
    };
    Row {
        row,
        prompt: Cow::Borrowed(&pair.prompt),
        responses: vec![
            side(
                "chosen",
                &pair.chosen,
                pair.chosen_complete,
                pair.score_chosen,
            ),
            side(
                "rejected",
                &pair.rejected,
                pair.rejected_complete,
                pair.score_rejected,
            ),
        ],
        tools: pair.tools.as_deref(),
        template_kwargs: pair.template_kwargs.as_deref(),
    }
}

fn of_candidates<'a>(set: &'a Candidates, row: u64) -> Row<'a> {
    let response = |(index, messages): (usize, &'a Vec<Message<'a>>)| Response {
        field: "responses",
        kind: "response",
        messages: Cow::Borrowed(messages),
        complete: set.complete.as_ref().is_none_or(|flags| flags[index]),
        score: set.scores.as_ref().and_then(|scores| scores[index]),
    };
    Row {
        row,
        prompt: Cow::Borrowed(&set.prompt),
        responses: set.responses.iter().enumerate().map(response).collect(),
        tools: set.tools.as_deref(),
        template_kwargs: set.template_kwargs.as_deref(),
    }
}

fn of_instruction<'a>(found: &'a Instruction, row: u64) -> Row<'a> {
    let response = Response {
        field: "response",
        kind: "response",
        messages: Cow::Borrowed(std::slice::from_ref(&found.response)),
        complete: true,
        score: found.score,
    };
    Row {
        row,
        prompt: Cow::Borrowed(&found.prompt),
        responses: vec![response],
        tools: found.tools.as_deref(),
        template_kwargs: found.template_kwargs.as_deref(),
    }
}
