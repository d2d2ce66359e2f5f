//! Rendering a row: by the shape of its chats where they have one, else message by message.

mod answer;
mod by_shape;
mod continued;
mod ends;
mod general;
mod places;
mod reasoning;
mod refusals;
mod rendering;
mod turns;

pub(super) use by_shape::Recent;
pub(super) use ends::without_own_end;

use super::input::{Row, Tokenization};
use super::texts::Texts;
use crate::reject::Reject;

#[cfg(test)]
mod tests;

/// Render a row.
pub(super) fn render(
    work: &Tokenization,
    row: &Row,
    shapes: &mut Recent,
    out: &mut Texts,
) -> Result<(), Reject> {
    refusals::check(row)?;
    if by_shape::render(work, row, shapes, out).is_none() {
        let template = work.template_of(row);
        *out = match continued::whole_turns(row)? {
            Some((row, begun)) => {
                let texts = general::render(work, &row, template)?;
                continued::part_turns(texts, &row, begun)?
            }
            None => general::render(work, row, template)?,
        };
    }
    Ok(())
}
