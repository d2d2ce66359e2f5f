//! Responses of a row that became the same tokens: none of them is to be preferred.

use std::collections::HashMap;

use super::columns::Columns;
use super::input::{Response, Row};
use crate::reject::{Reject, shorten};

/// Tokens of a response that are shown.
const SHOWN: usize = 10;

/// Refuse a row of which two responses, the lines from `first` + 1 on, have the same tokens and are to be told apart:
/// chosen and rejected, or candidates of different scores.
pub(super) fn check(row: &Row, out: &Columns, first: usize) -> Result<(), Reject> {
    let lengths = &out.lengths[first + 1..];
    let cut = || out.cuts[first + 1..].iter().any(|cut| *cut > 0);
    let total: usize = lengths.iter().sum();
    let ids = &out.ids[out.ids.len() - total..];
    match (&*row.responses, lengths) {
        ([_], _) => Ok(()),
        ([chosen, rejected], [length, _]) if chosen.kind == "chosen" => {
            let (one, other) = ids.split_at(*length);
            if one == other {
                return Err(identical([chosen, rejected], one, cut()));
            }
            Ok(())
        }
        _ => match same_candidates(row, ids, lengths) {
            Some((pair, ids)) => {
                let responses = pair.map(|index| &row.responses[index]);
                Err(identical(responses, ids, cut()))
            }
            None => Ok(()),
        },
    }
}

/// Two candidates of the same tokens and of different scores.
fn same_candidates<'a>(
    row: &Row,
    mut ids: &'a [u32],
    lengths: &[usize],
) -> Option<([usize; 2], &'a [u32])> {
    let mut seen: HashMap<&[u32], usize> = HashMap::with_capacity(lengths.len());
    for (index, length) in lengths.iter().enumerate() {
        let (own, rest) = ids.split_at(*length);
        ids = rest;
        let score = row.responses[index].score;
        let same = *seen.entry(own).or_insert(index);
        let other = row.responses[same].score;
        if score.is_some() && other.is_some() && score != other {
            return Some(([same, index], own));
        }
    }
    None
}

fn identical(pair: [&Response; 2], ids: &[u32], cut: bool) -> Reject {
    let [one, other] = pair.map(|response| response.field);
    let content = pair[1].messages.last().map_or("", |last| &*last.content);
    let shown: Vec<String> = ids.iter().take(SHOWN).map(u32::to_string).collect();
    let more = if ids.len() > SHOWN { " …" } else { "" };
    if cut {
        return Reject {
            reason: "identical_after_cut",
            field: other.to_owned(),
            value: format!("ids {}{more}", shown.join(" ")),
            rule: format!("{one} and {other} must differ in what the cut keeps"),
            remedy: "cut less (truncation, max_tokens), or drop the row",
        };
    }
    let rule = if one == other {
        format!(
            "{one} of different scores must differ in their tokens, as the chat template writes them"
        )
    } else {
        format!("{one} and {other} must differ in their tokens, as the chat template writes them")
    };
    Reject {
        reason: "identical_pair",
        field: other.to_owned(),
        value: shorten(content),
        rule,
        remedy: "drop the row",
    }
}
