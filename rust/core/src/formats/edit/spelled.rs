//! A text of its own that spells a chat.

use super::super::chat::spelled_chat;
use super::responses::Fields;
use super::row::Row;
use super::shortening::{replace, text};
use crate::truncate::Kept;
use crate::{Error, Result};

/// The text with its chat's last content shortened, and the units that went (none where it has no content); none for
/// other texts. `shorten` says what is kept of a content.
pub fn shorten_chat(
    whole: &str,
    shorten: impl FnOnce(&str) -> Result<Kept>,
) -> Result<Option<(String, Option<usize>)>> {
    if spelled_chat(whole).is_none() {
        return Ok(None);
    }
    let (header, cells) = (["text".to_owned()], [whole.to_owned()]);
    let fields = Fields::new(None, Some(header.to_vec()));
    let mut row = Row::of_record(&header, &cells);
    let found = fields
        .find(&row)
        .map_err(|what| Error::Argument(format!("a chat as text{what}")))?;
    let (Some(response), Some(value)) = (found.responses.first(), row.get("text")) else {
        return Ok(Some((whole.to_owned(), None)));
    };
    if response.parts.is_empty() {
        return Ok(Some((whole.to_owned(), None)));
    }
    let kept = shorten(&text(response))?;
    replace(&mut row, response, kept.kept);
    Ok(Some((row.now(&value), Some(kept.cut))))
}
