//! Which groups share a batch of a token budget, and the words for those that do not fit.
#![allow(clippy::cast_possible_wrap)] // item numbers are far below 2^63

use super::bins::{Bins, MAX_CAPACITY, Misfit, best_fit_decreasing};
use crate::{Error, Result};

/// Bins of items of these lengths, best-fit decreasing.
///
/// ```
/// use pyprefopt_core::pack::pack_lengths;
/// assert_eq!(pack_lengths(&[4, 7, 3], 10, None)?.items, [1, 2, 0]);
/// let error = pack_lengths(&[4, 11], 10, None).unwrap_err().to_string();
/// assert!(error.starts_with("lengths[1] must be at most max_tokens = 10, got 11"));
/// # Ok::<(), pyprefopt_core::Error>(())
/// ```
pub fn pack_lengths(lengths: &[i64], max_tokens: usize, max_groups: Option<usize>) -> Result<Bins> {
    fit(lengths, max_tokens, max_groups, |item| {
        let rule = match lengths.iter().position(|length| *length < 0) {
            Some(item) => format!("lengths[{item}] must be >= 0, got {}", lengths[item]),
            None => format!(
                "lengths[{item}] must be at most max_tokens = {max_tokens}, got {}; cut it or raise max_tokens",
                lengths[item]
            ),
        };
        Error::Argument(rule)
    })
}

/// Bins of groups of these costs, best-fit decreasing; those that cost nothing are dealt out to the bins. `row` names a
/// group that does not fit.
pub fn plan(
    costs: &[usize],
    max_tokens: usize,
    max_groups: Option<usize>,
    row: impl FnOnce(usize) -> usize,
) -> Result<Bins> {
    let (live, dead): (Vec<i64>, Vec<i64>) =
        (0..costs.len() as i64).partition(|&item| costs[item as usize] > 0);
    let live_costs: Vec<usize> = live.iter().map(|&item| costs[item as usize]).collect();
    let mut bins = fit(&live_costs, max_tokens, max_groups, |item| Error::Row {
        row: row(live[item] as usize),
        message: format!(
            "prompt and responses take {} tokens in one micro-batch, more than the budget of {max_tokens}",
            live_costs[item]
        ),
    })?;
    for item in &mut bins.items {
        *item = live[*item as usize];
    }
    Ok(bins.deal(&dead))
}

/// Best-fit decreasing, with errors in words; `misfit` is about an item by its number.
fn fit<C: Copy>(
    costs: &[C],
    max_tokens: usize,
    max_groups: Option<usize>,
    misfit: impl FnOnce(usize) -> Error,
) -> Result<Bins>
where
    usize: TryFrom<C>,
{
    if max_tokens == 0 || max_groups == Some(0) {
        return Err(Error::Argument(
            "max_tokens and max_groups must be > 0, got 0".into(),
        ));
    }
    best_fit_decreasing(costs, max_tokens, max_groups).map_err(|error| match error {
        Misfit::Item(item) => misfit(item),
        Misfit::Capacity => Error::Argument(format!(
            "max_tokens must be at most {MAX_CAPACITY}, got {max_tokens}"
        )),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_cost_nothing_are_dealt_out() {
        let bins = plan(&[0, 7, 4, 0, 3, 0], 10, None, |item| item).unwrap();
        assert_eq!(bins.offsets, [0, 4, 6]);
        assert_eq!(bins.items, [0, 1, 4, 5, 2, 3]);
        let none = plan(&[0, 0], 10, Some(1), |item| item).unwrap();
        assert_eq!((none.offsets, none.items), (vec![0, 2], vec![0, 1]));
        assert_eq!(plan(&[], 10, None, |item| item).unwrap().offsets, [0]);
    }

    #[test]
    fn a_group_that_does_not_fit_is_named_by_its_row() {
        let error = plan(&[0, 4, 11], 10, None, |item| item + 100).unwrap_err();
        let message = "row 102: prompt and responses take 11 tokens in one micro-batch, more than the budget of 10";
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn budgets_are_checked() {
        for (max_tokens, max_groups) in [(0, None), (1, Some(0)), (MAX_CAPACITY + 1, None)] {
            let lengths = [MAX_CAPACITY as i64 + 1];
            assert!(matches!(
                pack_lengths(&lengths, max_tokens, max_groups),
                Err(Error::Argument(_))
            ));
        }
        let error = pack_lengths(&[4, 11, -1], 10, None).unwrap_err();
        assert_eq!(error.to_string(), "lengths[2] must be >= 0, got -1");
    }
}
