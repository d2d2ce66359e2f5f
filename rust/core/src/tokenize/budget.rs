//! What is kept of a prompt that is too long, and the words of a refusal.

use std::ops::Range;

use super::input::{Boundary, Limits, PromptOverflow, Response, Row, Tokenization};
use super::texts::Prompt;
use crate::reject::Reject;

const TOO_LONG: &str = "prompt_too_long";
const DROPPED: &str = "prompt_dropped"; // of a row that a setting leaves out, which is no fault of the row

/// Tokens of a prompt that are kept, and how many are not.
pub(super) struct Kept {
    pub ranges: [Range<usize>; 2],
    pub cut: u32,
}

/// What is kept of a prompt: all of it, or its end or start of `max_prompt_tokens`, with the BOS token at its start and
/// the generation prompt at its end always among them.
pub(super) fn prompt(
    work: &Tokenization,
    prompt: &Prompt,
    row: &Row,
    ids: &[u32],
    offsets: &[(u32, u32)],
) -> Result<Kept, Reject> {
    let length = ids.len();
    if length == 0 {
        let (rule, content) = (
            "a prompt must have at least one token",
            &row.prompt[0].content,
        );
        return Err(Reject::new(
            "prompt",
            content,
            "empty_prompt",
            rule,
            "drop the row",
        ));
    }
    let limits = work.limits;
    let most = limits.max_prompt_tokens.unwrap_or(usize::MAX);
    let head = usize::from(work.bos.is_some() && ids.first() == work.bos.as_ref());
    let generation = prompt.generation;
    let tail = length - offsets.partition_point(|(start, _)| (*start as usize) < generation);
    let ranges = match limits.prompt_overflow {
        _ if length <= most => [0..length, length..length],
        PromptOverflow::Error => return Err(prompt_too_long(length, most, 0, TOO_LONG)),
        PromptOverflow::Drop => return Err(prompt_too_long(length, most, 0, DROPPED)),
        _ if most <= head + tail => {
            return Err(prompt_too_long(length, most, head + tail, TOO_LONG));
        }
        PromptOverflow::KeepEnd => [0..head, length - (most - head)..length],
        PromptOverflow::KeepStart => [0..most - tail, length - tail..length],
    };
    let kept: usize = ranges.iter().map(ExactSizeIterator::len).sum();
    match limits.max_tokens {
        Some(most) if kept >= most => Err(too_long("prompt", kept, most)),
        _ => Ok(Kept {
            ranges,
            cut: (length - kept) as u32,
        }),
    }
}

fn prompt_too_long(length: usize, most: usize, fixed: usize, reason: &'static str) -> Reject {
    let rule = if fixed == 0 {
        format!("a prompt has at most {most} tokens")
    } else {
        format!(
            "a prompt has at most {most} tokens, and more than the {fixed} that the template needs"
        )
    };
    let remedy = "raise max_prompt_tokens, or set prompt_overflow to keep_end, keep_start or drop";
    Reject::new("prompt", &format!("{length} tokens"), reason, rule, remedy)
}

/// Whether prompt and responses may be tokenized apart, because no token ends at their boundary.
pub(super) fn check_apart(work: &Tokenization, row: &Row, prompt: &str) -> Result<(), Reject> {
    let exact = work.encoder.byte_level();
    if exact && work.limits.boundary == Boundary::Split {
        return Ok(());
    }
    let rule = "prompt and responses must meet at a token's edge, with the same prompt tokens for all responses";
    let remedy = if exact {
        "set boundary to split, which tokenizes them apart, or use a template that separates them, such as chatml"
    } else {
        "use a template that separates them, such as chatml, or a byte-level tokenizer"
    };
    let mut end = prompt.len().saturating_sub(40);
    while !prompt.is_char_boundary(end) {
        end += 1;
    }
    Err(Reject::new(
        row.responses[0].field,
        &prompt[end..],
        "boundary",
        rule,
        remedy,
    ))
}

/// The response's room is taken by what the template writes before it, or the tokenizer drops all its characters.
pub(super) fn no_content(response: &Response, prompt_length: usize, limits: Limits) -> Reject {
    if let Some(most) = limits.max_tokens {
        return too_long(response.field, prompt_length, most);
    }
    let rule = "a response must have at least one token";
    Reject::new(
        response.field,
        response.content(),
        "empty_response",
        rule,
        "drop the row",
    )
}

/// Nothing of the response that is left is scored.
pub(super) fn no_answer(response: &Response) -> Reject {
    let rule = "max_tokens must leave something of the answer behind the reasoning, which is not scored \
                (score_reasoning false)";
    let remedy = "raise max_tokens, or set score_reasoning to true, or drop the row";
    Reject::new(
        response.field,
        response.content(),
        "no_answer",
        rule,
        remedy,
    )
}

fn too_long(field: &'static str, length: usize, most: usize) -> Reject {
    let rule = format!(
        "prompt and response have at most {most} tokens, at least one of them the response's"
    );
    let remedy = "raise max_tokens, or lower max_prompt_tokens, or drop the row";
    let value = format!("a prompt of {length} tokens");
    Reject::new(field, &value, "prompt_too_long", rule, remedy)
}
