//! Rendering a row: by the shape of its chats where they have one, else message by message.

mod by_shape;
mod continued;
mod general;
mod places;
mod rendering;
mod turns;

pub(super) use by_shape::Recent;

use super::input::{Response, Row};
use super::texts::Texts;
use crate::reject::Reject;
use crate::template::ChatTemplate;

/// Render a row.
pub(super) fn render(
    template: &ChatTemplate,
    row: &Row,
    find_generation: bool,
    shapes: &mut Recent,
    out: &mut Texts,
) -> Result<(), Reject> {
    check(row)?;
    if by_shape::render(template, row, shapes, out).is_none() {
        *out = match continued::whole_turns(row)? {
            Some((row, begun)) => {
                let texts = general::render(template, &row, find_generation)?;
                continued::part_turns(texts, &row, begun)?
            }
            None => general::render(template, row, find_generation)?,
        };
    }
    Ok(())
}

fn check(row: &Row) -> Result<(), Reject> {
    if row.prompt.is_empty() {
        let (rule, remedy) = (
            "a prompt must not be empty",
            "give the prompt at least one message, or drop the row",
        );
        return Err(Reject::new("prompt", "[]", "empty_prompt", rule, remedy));
    }
    if row.responses.is_empty() {
        let rule = "a prompt must have at least one response";
        return Err(Reject::new(
            "responses",
            "[]",
            "empty_response",
            rule,
            "drop the row",
        ));
    }
    let empty = |response: &&Response| {
        let last = response.messages.last();
        last.is_none_or(|message| message.content.trim().is_empty())
    };
    match row.responses.iter().find(empty) {
        None => Ok(()),
        Some(response) => {
            let rule = "a response must have content";
            Err(Reject::new(
                response.field,
                "",
                "empty_response",
                rule,
                "drop the row",
            ))
        }
    }
}
