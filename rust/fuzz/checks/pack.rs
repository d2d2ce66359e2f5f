//! Any lengths are packed into bins that keep their bounds and hold each item once; batches add up.
#![allow(clippy::cast_possible_wrap)] // these are small

use pyprefopt_core::pack::{
    Group, Kind, Layout, Misfit, Response, assemble, batch_tokens, best_fit_decreasing,
};
use pyprefopt_core::select::Bits;

pub fn check(data: &[u8]) {
    let Some((head, rest)) = data.split_at_checked(3) else {
        return;
    };
    let capacity = usize::from(head[0]) << (head[1] % 12);
    let limit = (head[2] > 0).then_some(usize::from(head[2]));
    let costs: Vec<usize> = rest
        .chunks(2)
        .map(|two| usize::from(two[0]) << (two.get(1).unwrap_or(&0) % 12))
        .collect();
    let largest = costs.iter().position(|&cost| cost > capacity);
    match best_fit_decreasing(&costs, capacity, limit) {
        Err(Misfit::Item(item)) => assert_eq!(Some(item), largest),
        Err(Misfit::Capacity) => panic!("these are small"),
        Ok(bins) => {
            assert_eq!(largest, None);
            let mut items = bins.items.clone();
            items.sort_unstable();
            assert!(items.into_iter().eq(0..costs.len() as i64));
            for bin in bins.iter() {
                assert!(!bin.is_empty() && limit.is_none_or(|limit| bin.len() <= limit));
                assert!(bin.iter().map(|&item| costs[item as usize]).sum::<usize>() <= capacity);
            }
        }
    }
    check_batches(head[0], rest);
}

/// Groups cut from the bytes: what a batch holds is what its groups cost.
fn check_batches(layout: u8, bytes: &[u8]) {
    let layout = if layout % 2 == 0 {
        Layout::Shared
    } else {
        Layout::Separate
    };
    let ids: Vec<u32> = bytes.iter().map(|&byte| u32::from(byte)).collect();
    let weights: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte % 3)).collect();
    let groups: Vec<Group<'_>> = ids
        .chunks(16)
        .zip(weights.chunks(16))
        .zip(bytes.chunks(16))
        .enumerate()
        .map(|(row, ((ids, weights), bits))| {
            let (prompt, ids) = ids.split_at(usize::from(bits[0] % 4).min(ids.len()));
            let weights = (bits[0] & 8 > 0).then_some(&weights[prompt.len()..]);
            let response = |kind| Response {
                ids,
                mask: Bits::new(bits, 0, ids.len().min(8 * bits.len())),
                selected: (bits[0] & 16 > 0).then(|| Bits::new(bits, 1, ids.len())),
                values: [None, weights, None],
                kind,
                line: row as i64,
                score: 0.0,
                ratio: 1.0,
                whole: bits[0] & 32 > 0,
                keep_unweighted: bits[0] & 4 > 0,
            };
            let count = usize::from(bits[0] >> 6);
            let responses =
                (0..count).map(|i| response([Kind::Chosen, Kind::Rejected, Kind::Response][i]));
            Group {
                row: row as u64,
                prompt,
                responses: responses.collect(),
            }
        })
        .filter(|group| group.check().is_ok())
        .collect();
    let tokens = batch_tokens(&groups, layout);
    let cost: usize = groups.iter().map(|group| group.cost(layout)).sum();
    assert!(tokens == cost || (tokens, cost) == (1, 0));
    let batch = assemble(&[groups], layout)
        .expect("checked groups can be assembled")
        .remove(0);
    assert_eq!(batch.input_ids.len(), tokens);
    assert_eq!(batch.segment_offsets.last(), Some(&(tokens as i64)));
    assert!(
        batch
            .hidden_index
            .iter()
            .all(|&index| 0 <= index && index < tokens as i64)
    );
    assert_eq!(batch.target_ids.len(), batch.response_index.len());
}
