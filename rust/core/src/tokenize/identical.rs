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
    let lines = first + 1..out.lengths.len();
    let total: usize = out.lengths[lines.clone()].iter().sum();
    let mut start = out.ids.len() - total;
    let mut tokens = Vec::with_capacity(lines.len());
    for line in lines {
        let end = start + out.lengths[line];
        tokens.push(&out.ids[start..end]);
        start = end;
    }
    let cut = || out.cuts[first + 1..].iter().any(|cut| *cut > 0);
    match (&*row.responses, &*tokens) {
        ([chosen, rejected], [one, other]) if chosen.kind == "chosen" => match one == other {
            true => Err(identical([chosen, rejected], one, cut())),
            false => Ok(()),
        },
        _ => match same_candidates(row, &tokens) {
            Some(pair) => {
                let responses = pair.map(|index| &row.responses[index]);
                Err(identical(responses, tokens[pair[1]], cut()))
            }
            None => Ok(()),
        },
    }
}

/// Two candidates of the same tokens and of different scores.
fn same_candidates(row: &Row, tokens: &[&[u32]]) -> Option<[usize; 2]> {
    if tokens.len() < 2 {
        return None;
    }
    let mut seen: HashMap<&[u32], usize> = HashMap::with_capacity(tokens.len());
    for (index, ids) in tokens.iter().enumerate() {
        let score = row.responses[index].score;
        let same = *seen.entry(ids).or_insert(index);
        let other = row.responses[same].score;
        if score.is_some() && other.is_some() && score != other {
            return Some([same, index]);
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
