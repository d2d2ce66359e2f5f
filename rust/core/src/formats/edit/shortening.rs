//! Responses cut: how much of each is kept, and what becomes of a pair.

use std::borrow::Cow;

use serde_json::Value;

use super::responses::{Both, Response};
use super::row::Row;
use crate::Result;
use crate::tokenize::Encoded;
use crate::truncate::{Counter, Cut, Kept};

/// How responses are cut.
pub struct Shortening<'a> {
    pub counter: Counter<'a>,
    pub cut: Cut,
    /// A ratio is of the row's shortest response.
    pub of_shortest: bool,
    /// A response that was cut is complete all the same.
    pub ended: bool,
}

/// What is kept of each response.
pub fn kept(responses: &[Response], how: &Shortening, tokens: &mut Encoded) -> Result<Vec<Kept>> {
    let texts: Vec<Cow<str>> = responses.iter().map(text).collect();
    let mut base = None;
    if how.of_shortest {
        for (response, text) in responses.iter().zip(&texts) {
            if !response.parts.is_empty() {
                let count = how.counter.count(text, tokens)?;
                base = Some(base.map_or(count, |least: usize| least.min(count)));
            }
        }
    }
    let kept = |text: &Cow<str>| how.counter.kept(text, how.cut, base, tokens);
    texts.iter().map(kept).collect()
}

/// What is cut of a response.
pub fn text<'r>(response: &'r Response) -> Cow<'r, str> {
    match &response.parts[..] {
        [part] => Cow::Borrowed(&part.text[response.lead..]),
        parts => Cow::Owned(parts.iter().map(|part| &*part.text).collect()),
    }
}

/// Keep so many bytes of the response.
pub fn replace(row: &mut Row, response: &Response, kept: usize) {
    let mut left = kept + response.lead;
    for part in &response.parts {
        if left < part.text.len() {
            row.replace(&part.place, &part.text[..left]);
        }
        left = left.saturating_sub(part.text.len());
    }
}

/// Whether the cut has made the sides of a pair the same, with all that stands before their last messages.
pub fn is_same(row: &Row, responses: &[Response], kept: &[Kept], sides: Option<&Both>) -> bool {
    let (Some(sides), [one, other]) = (sides, responses) else {
        return false;
    };
    let is_cut = kept.iter().any(|kept| kept.cut > 0);
    if !is_cut || text(one)[..kept[0].kept] != text(other)[..kept[1].kept] {
        return false;
    }
    let json = |side: &str| serde_json::from_str::<Value>(side).ok();
    match sides {
        Both::Values([first, second]) => {
            let (first, second) = (row.now(first), row.now(second));
            first == second || json(&first).is_some_and(|first| json(&second) == Some(first))
        }
        Both::Text(list) => {
            let now = row.now(list);
            let list = match json(&now) {
                Some(Value::String(list)) => json(&list),
                list => list,
            };
            let list = list.as_ref().and_then(Value::as_array);
            list.is_some_and(|list| list.first() == list.get(1))
        }
    }
}
