//! A packed batch: the arrays of the groups that share it.
#![allow(clippy::cast_possible_wrap)] // rows, lines and token counts are far below 2^63

use rayon::prelude::*;

use super::group::{Group, Kind, Layout, Response, VALUES};
use crate::{Error, Result};

/// The arrays of `pyprefopt.types.PackedBatch`, of the same names; `values` in the order of [`VALUES`].
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    pub input_ids: Vec<i64>,
    pub position_ids: Vec<i64>,
    pub segment_offsets: Vec<i64>,
    pub segment_parent: Vec<i64>,
    pub hidden_index: Vec<i64>,
    pub target_ids: Vec<i64>,
    pub response_index: Vec<i64>,
    pub token_position: Vec<i64>,
    pub token_mask: Vec<f32>,
    pub response_row: Vec<i64>,
    pub response_line: Vec<i64>,
    pub response_length: Vec<f32>,
    pub scored_length: Vec<f32>,
    pub selection_ratio: Vec<f32>,
    pub response_group: Vec<i64>,
    pub response_score: Vec<f32>,
    pub pair_chosen: Vec<i64>,
    pub pair_rejected: Vec<i64>,
    pub values: [Option<Vec<f32>>; 3],
    /// The input position of each response's last token (of the prompt's, where it has none); only of whole responses.
    pub last_index: Option<Vec<i64>>,
}

/// Input tokens of a batch: what its groups cost, or one where that is nothing, since a model wants a token to run on.
pub fn batch_tokens(groups: &[Group<'_>], layout: Layout) -> usize {
    let cost = groups.iter().map(|group| group.cost(layout)).sum();
    usize::max(cost, groups.len().min(1))
}

/// One batch per bin, in parallel. The groups must have passed [`Group::check`].
pub fn assemble(bins: &[Vec<Group<'_>>], layout: Layout) -> Result<Vec<Batch>> {
    let batches: Vec<Result<Batch>> = bins
        .par_iter()
        .map(|groups| Batch::of(groups, layout))
        .collect();
    batches.into_iter().collect()
}

impl Batch {
    fn of(groups: &[Group<'_>], layout: Layout) -> Result<Self> {
        let first = groups.first().and_then(|group| group.responses.first());
        let values = first.map_or([const { None }; 3], |response| {
            response.values.map(|column| column.map(|_| Vec::new()))
        });
        let mut batch = Self {
            segment_offsets: vec![0],
            values,
            last_index: first.is_some_and(|response| response.whole).then(Vec::new),
            ..Self::default()
        };
        let tokens = batch_tokens(groups, layout);
        batch.input_ids.reserve_exact(tokens);
        batch.position_ids.reserve_exact(tokens);
        for (index, group) in groups.iter().enumerate() {
            batch
                .add_group(index as i64, group, layout)
                .map_err(|message| Error::Row {
                    row: group.row as usize,
                    message,
                })?;
        }
        if let (true, Some(group)) = (batch.input_ids.len() < tokens, groups.first()) {
            batch.add_segment(&group.prompt[..1], &[], 0, -1);
        }
        batch.token_mask = vec![1.0; batch.target_ids.len()];
        Ok(batch)
    }

    fn add_group(
        &mut self,
        index: i64,
        group: &Group<'_>,
        layout: Layout,
    ) -> std::result::Result<(), String> {
        let prompt = group.prompt.len() as i64;
        let parent = self.segment_parent.len() as i64;
        let mut last_prompt = prompt - 1 + self.input_ids.len() as i64;
        if layout == Layout::Shared && group.cost(layout) > 0 {
            self.add_segment(group.prompt, &[], 0, -1);
        }
        let (mut chosen, mut rejected) = (None, None);
        for response in &group.responses {
            let r = self.response_row.len() as i64;
            let kept = response.kept().map(|kept| &response.ids[..kept]);
            let mut first = 0;
            if let Some(kept) = kept {
                first = match layout {
                    Layout::Shared => self.add_segment(kept, &[], prompt, parent),
                    Layout::Separate => {
                        let first = self.add_segment(group.prompt, kept, 0, -1) + prompt;
                        last_prompt = first - 1;
                        first
                    }
                };
            }
            self.add_tokens(response, r, first, last_prompt)?;
            if let (Some(last_index), Some(kept)) = (&mut self.last_index, kept) {
                last_index.push(if kept.is_empty() {
                    last_prompt
                } else {
                    first + kept.len() as i64 - 1
                });
            }
            self.response_row.push(group.row as i64);
            self.response_group.push(index);
            match response.kind {
                Kind::Chosen => chosen = Some(r),
                Kind::Rejected => rejected = Some(r),
                Kind::Response => {}
            }
        }
        if let (Some(chosen), Some(rejected)) = (chosen, rejected) {
            self.pair_chosen.push(chosen);
            self.pair_rejected.push(rejected);
        }
        Ok(())
    }

    /// Append a segment of `head` and `tail` whose positions begin at `start`; the index of its first token.
    fn add_segment(&mut self, head: &[u32], tail: &[u32], start: i64, parent: i64) -> i64 {
        let first = self.input_ids.len() as i64;
        self.input_ids
            .extend(head.iter().chain(tail).map(|&id| i64::from(id)));
        let end = self.input_ids.len() as i64;
        self.position_ids.extend(start..start + end - first);
        self.segment_offsets.push(end);
        self.segment_parent.push(parent);
        first
    }

    /// Append the live tokens of response `r`, whose first token is input `first` where it is an input at all.
    fn add_tokens(
        &mut self,
        response: &Response<'_>,
        r: i64,
        first: i64,
        last_prompt: i64,
    ) -> std::result::Result<(), String> {
        let (mut position, mut scored) = (0, 0);
        for t in 0..response.ids.len() {
            scored += usize::from(response.is_scored(t));
            if response.is_live(t) {
                self.hidden_index.push(if t == 0 {
                    last_prompt
                } else {
                    first + t as i64 - 1
                });
                self.target_ids.push(i64::from(response.ids[t]));
                self.token_position.push(position);
                for ((values, column), name) in
                    self.values.iter_mut().zip(response.values).zip(VALUES)
                {
                    let (Some(values), Some(column)) = (values, column) else {
                        continue;
                    };
                    if !column[t].is_finite() {
                        return Err(format!(
                            "{name} of token {t} in line {} is {}; it must be a finite number",
                            response.line, column[t]
                        ));
                    }
                    values.push(column[t]);
                }
            }
            position += i64::from(response.mask.get(t));
        }
        self.response_index.resize(self.target_ids.len(), r);
        self.response_line.push(response.line);
        self.response_length.push(position as f32);
        self.scored_length.push(scored as f32);
        self.selection_ratio.push(response.ratio);
        self.response_score.push(response.score);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::pack::group::USER_WEIGHTS;
    use crate::select::Bits;

    #[test]
    fn a_whole_response_is_read_at_its_last_token() {
        let response = |ids, whole| Response {
            ids,
            mask: Bits::new(&[0b001], 0, 3), // the last two tokens are the template's
            selected: None,
            values: [None; 3],
            kind: Kind::Response,
            line: 1,
            score: 0.0,
            ratio: 1.0,
            whole,
            keep_unweighted: false,
        };
        let pack = |ids, whole, layout| {
            let group = Group {
                row: 0,
                prompt: &[5, 6],
                responses: vec![response(ids, whole)],
            };
            let cost = group.cost(layout);
            let batch = assemble(&[vec![group]], layout).unwrap().remove(0);
            assert_eq!(cost, batch.input_ids.len());
            (batch.input_ids, batch.last_index)
        };
        for layout in [Layout::Shared, Layout::Separate] {
            assert_eq!(pack(&[7, 8, 9], false, layout), (vec![5, 6], None));
            let whole = pack(&[7, 8, 9], true, layout);
            assert_eq!(whole, (vec![5, 6, 7, 8, 9], Some(vec![4])));
            assert_eq!(pack(&[], true, layout), (vec![5, 6], Some(vec![1])));
        }
    }

    #[test]
    fn what_is_dead_is_not_packed() {
        let response = |weights, line| Response {
            ids: &[7, 8, 9],
            mask: Bits::new(&[0b111], 0, 3),
            selected: None,
            values: [None, Some(weights), None],
            kind: if line == 1 {
                Kind::Chosen
            } else {
                Kind::Rejected
            },
            line,
            score: 0.0,
            ratio: 1.0,
            whole: false,
            keep_unweighted: false,
        };
        let dead: &[f32] = &[0.0; 3];
        for layout in [Layout::Shared, Layout::Separate] {
            let pack = |chosen, rejected| {
                let group = Group {
                    row: 0,
                    prompt: &[5, 6],
                    responses: vec![response(chosen, 1), response(rejected, 2)],
                };
                let cost = group.cost(layout);
                (cost, assemble(&[vec![group]], layout).unwrap().remove(0))
            };
            let (cost, batch) = pack(&[0.5, 2.0, 0.0], dead);
            assert_eq!((cost, &batch.input_ids), (3, &vec![5, 6, 7]));
            assert_eq!(
                (&batch.hidden_index, &batch.target_ids),
                (&vec![1, 2], &vec![7, 8])
            );
            assert_eq!(batch.response_index, [0, 0]);
            assert_eq!(batch.scored_length, [3.0, 3.0]);
            assert_eq!(batch.response_length, [3.0, 3.0]);
            assert_eq!(batch.values[USER_WEIGHTS], Some(vec![0.5, 2.0]));
            let (cost, batch) = pack(dead, &[0.0, 0.0, 1.0]);
            assert_eq!((cost, &batch.input_ids), (4, &vec![5, 6, 7, 8]));
            assert_eq!(
                (&batch.hidden_index, &batch.response_index),
                (&vec![3], &vec![1])
            );
            let (cost, batch) = pack(dead, dead);
            assert_eq!((cost, &batch.input_ids), (0, &vec![5]));
            assert_eq!(batch_tokens(&[], layout), 0);
            assert_eq!(batch.segment_offsets, [0, 1]);
            assert_eq!(
                (&batch.pair_chosen, &batch.pair_rejected),
                (&vec![0], &vec![1])
            );
            assert!(batch.target_ids.is_empty());
        }
    }
}
