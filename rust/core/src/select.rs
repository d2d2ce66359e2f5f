//! Token selection by top-k% (`SePO`, Eq. 25), threshold or chance.

mod candidates;
mod order;

use rayon::prelude::*;

use crate::rounding::Rounding;
use crate::{Error, Result};
pub use candidates::{Bits, Candidates, Excluded};
pub use order::{Order, random_key};
use order::{chance, key, rank};

/// Tokens that one task of the thread pool takes at least.
const TASK_TOKENS: usize = 1 << 15;

/// How many tokens are selected.
#[derive(Debug, Clone, Copy)]
pub enum Amount {
    /// A share of the candidates.
    Ratio(f64),
    /// All whose score is at this value or beyond it.
    Threshold(f32),
}

/// One list: in which order its candidates are taken, and how many of them.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    pub order: Order<'a>,
    pub candidates: Candidates<'a>,
    pub amount: Amount,
}

/// What holds for all lists: how a share is rounded, and how many tokens are selected at least (where there are).
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub rounding: Rounding,
    pub minimum: usize,
}

impl Rule {
    /// Number of tokens that a ratio selects of `candidates`.
    ///
    /// ```
    /// use pyprefopt_core::{rounding::Rounding, select::Rule};
    /// let rule = Rule { rounding: Rounding::HalfUp, minimum: 1 };
    /// assert_eq!((rule.count(0.3, 5), rule.count(0.1, 2), rule.count(0.5, 0)), (2, 1, 0));
    /// ```
    pub fn count(self, ratio: f64, candidates: usize) -> usize {
        let share = self.rounding.share(ratio, candidates);
        share.max(self.minimum).min(candidates)
    }
}

/// The selected tokens of all rows, one after the other; the same for any number of threads.
///
/// Ties go to the earlier token, -0.0 equals 0.0. A NaN at a candidate is an error that names the first such row.
///
/// ```
/// use pyprefopt_core::rounding::Rounding;
/// use pyprefopt_core::select::{Amount, Candidates, Order, Row, Rule, select};
/// let order = Order::Scores { scores: &[1.0, 3.0, 3.0, 2.0], largest: true };
/// let row = Row { order, candidates: Candidates::default(), amount: Amount::Ratio(0.25) };
/// let rule = Rule { rounding: Rounding::HalfUp, minimum: 1 };
/// assert_eq!(select(&[row], rule).unwrap(), [false, true, false, false]);
/// let row = Row { amount: Amount::Threshold(2.0), ..row };
/// assert_eq!(select(&[row], rule).unwrap(), [false, true, true, true]);
/// ```
pub fn select(rows: &[Row<'_>], rule: Rule) -> Result<Vec<bool>> {
    let total = rows.iter().map(|row| row.order.len()).sum();
    let mut selected = vec![false; total];
    let results: Vec<Result<()>> = tasks(rows, &mut selected)
        .into_par_iter()
        .map(|(first, rows, out)| select_rows(first, rows, out, rule))
        .collect();
    results.into_iter().collect::<Result<()>>()?; // in order, so the first bad row is the one that is named
    Ok(selected)
}

type Task<'a> = (usize, &'a [Row<'a>], &'a mut [bool]);

/// Cut rows and output into runs of about `TASK_TOKENS` tokens: (index of the first row, rows, their output).
fn tasks<'a>(mut rows: &'a [Row<'a>], mut out: &'a mut [bool]) -> Vec<Task<'a>> {
    let (mut tasks, mut first) = (Vec::new(), 0);
    while !rows.is_empty() {
        let (mut count, mut tokens) = (0, 0);
        while count < rows.len() && tokens < TASK_TOKENS {
            tokens += rows[count].order.len();
            count += 1;
        }
        let (own, other_rows) = rows.split_at(count);
        let (own_out, other_out) = out.split_at_mut(tokens);
        tasks.push((first, own, own_out));
        (rows, out, first) = (other_rows, other_out, first + count);
    }
    tasks
}

fn select_rows(first: usize, rows: &[Row<'_>], mut out: &mut [bool], rule: Rule) -> Result<()> {
    let mut scratch = Scratch::default();
    for (index, row) in rows.iter().enumerate() {
        let (own, other) = out.split_at_mut(row.order.len());
        select_row(row, rule, &mut scratch, own).map_err(|message| Error::Row {
            row: first + index,
            message,
        })?;
        out = other;
    }
    Ok(())
}

/// Space that the rows of a task use again and again.
#[derive(Default)]
struct Scratch {
    keys: Vec<u64>,
    ranks: Vec<u32>,
}

/// Select within one row; `out` comes all false.
fn select_row(
    row: &Row<'_>,
    rule: Rule,
    Scratch { keys, ranks }: &mut Scratch,
    out: &mut [bool],
) -> std::result::Result<(), String> {
    if let (Order::Scores { scores, largest }, Amount::Ratio(ratio), true) =
        (row.order, row.amount, row.candidates.all())
    {
        check_scores(scores, row.candidates)?;
        let count = rule.count(ratio, scores.len());
        select_of_all(scores, largest, count, ranks, out);
        return Ok(());
    }
    keys.clear();
    match row.order {
        Order::Scores { scores, largest } => {
            let ordered = |index: u32| key(scores[index as usize], index, largest);
            fill(keys, scores.len(), row.candidates, ordered);
            check_scores(scores, row.candidates)?;
        }
        Order::Random { key, length } => {
            fill(keys, length, row.candidates, |index| chance(key, index));
        }
    }
    let count = match (row.amount, row.order) {
        (Amount::Threshold(at), Order::Scores { largest, .. }) => {
            let last = key(at, u32::MAX, largest); // after every token whose score ties with the threshold
            let beyond = keys.iter().filter(|&&key| key <= last).count();
            beyond.max(rule.minimum).min(keys.len())
        }
        (Amount::Ratio(ratio), _) => rule.count(ratio, keys.len()),
        (Amount::Threshold(_), Order::Random { .. }) => {
            return Err(
                "a random order has no scores that a threshold could be compared with".into(),
            );
        }
    };
    if 0 < count && count < keys.len() {
        keys.select_nth_unstable(count - 1);
    }
    for &key in &keys[..count] {
        out[(key & 0xffff_ffff) as usize] = true;
    }
    Ok(())
}

/// The first `count` of all tokens, the common case: keys of half the width find the last rank that is selected, then
/// what ranks up to it is marked, but for the last ones of those that tie with it. Most of it is vectorised.
fn select_of_all(
    scores: &[f32],
    largest: bool,
    count: usize,
    ranks: &mut Vec<u32>,
    out: &mut [bool],
) {
    if count == 0 {
        return;
    }
    ranks.clear();
    ranks.extend(scores.iter().map(|&score| rank(score, largest)));
    let last = *ranks.select_nth_unstable(count - 1).1;
    for (mark, &score) in out.iter_mut().zip(scores) {
        *mark = rank(score, largest) <= last;
    }
    let marked = out.iter().filter(|&&mark| mark).count();
    let tied = (0..scores.len())
        .rev()
        .filter(|&index| rank(scores[index], largest) == last);
    for index in tied.take(marked - count) {
        out[index] = false;
    }
}

/// The keys of the candidates among `length` tokens.
#[inline]
fn fill(keys: &mut Vec<u64>, length: usize, candidates: Candidates<'_>, key: impl Fn(u32) -> u64) {
    let all = 0..length as u32;
    if candidates.all() {
        keys.extend(all.map(key));
    } else {
        keys.extend(all.filter(|&index| candidates.has(index as usize)).map(key));
    }
}

/// All scores are looked at first: that loop is vectorised, and a NaN outside the candidates is rare.
fn check_scores(scores: &[f32], candidates: Candidates<'_>) -> std::result::Result<(), String> {
    if !scores
        .iter()
        .fold(false, |found, score| found | score.is_nan())
    {
        return Ok(());
    }
    let mut bad = (0..scores.len()).filter(|&at| scores[at].is_nan() && candidates.has(at));
    bad.next().map_or(Ok(()), |at| {
        Err(format!(
            "the score of token {at} is NaN or null; every token that may be selected needs a score"
        ))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HALF_UP: Rule = Rule {
        rounding: Rounding::HalfUp,
        minimum: 1,
    };

    fn all(scores: &[f32], ratio: f64, largest: bool) -> Row<'_> {
        Row {
            order: Order::Scores { scores, largest },
            candidates: Candidates::default(),
            amount: Amount::Ratio(ratio),
        }
    }

    fn masked<'a>(row: Row<'a>, bytes: &'a [u8]) -> Row<'a> {
        let mask = Some(Bits::new(bytes, 0, row.order.len()));
        let candidates = Candidates { mask, ids: None };
        Row { candidates, ..row }
    }

    fn slow(row: &Row<'_>, rule: Rule) -> Vec<bool> {
        let mut order: Vec<usize> = (0..row.order.len())
            .filter(|&i| row.candidates.has(i))
            .collect();
        let value = |i: usize| match row.order {
            Order::Scores { scores, largest } => {
                f64::from(scores[i]) * if largest { -1.0 } else { 1.0 }
            }
            Order::Random { key, .. } => (chance(key, i as u32) >> 32) as f64,
        };
        order.sort_by(|&a, &b| value(a).partial_cmp(&value(b)).expect("no NaN")); // stable: the earlier token first
        let count = match (row.amount, row.order) {
            (Amount::Ratio(ratio), _) => rule.count(ratio, order.len()),
            (Amount::Threshold(at), Order::Scores { largest, .. }) => {
                let limit = f64::from(at) * if largest { -1.0 } else { 1.0 };
                let beyond = order.iter().filter(|&&i| value(i) <= limit).count();
                beyond.max(rule.minimum).min(order.len())
            }
            (Amount::Threshold(_), Order::Random { .. }) => unreachable!("not made here"),
        };
        let mut out = vec![false; row.order.len()];
        order[..count].iter().for_each(|&i| out[i] = true);
        out
    }

    #[test]
    fn zeros_tie_and_infinities_order() {
        let scores = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY];
        let half = |largest| select(&[all(&scores, 0.5, largest)], HALF_UP).unwrap();
        assert_eq!(half(true), [true, false, true, false]);
        assert_eq!(half(false), [true, false, false, true]);
        let tied = [-0.0, 0.0];
        let row = all(&tied, 0.5, true);
        assert_eq!(select(&[row], HALF_UP).unwrap(), [true, false]);
        for zero in [0.0, -0.0] {
            let amount = Amount::Threshold(zero);
            assert_eq!(
                select(&[Row { amount, ..row }], HALF_UP).unwrap(),
                [true, true]
            );
        }
    }

    #[test]
    fn nan_is_an_error_at_a_candidate_only() {
        let (scores, ok) = ([f32::NAN, 1.0], [1.0]);
        let rows = [all(&ok, 0.5, true), all(&scores, 0.5, true)];
        let error = select(&rows, HALF_UP).unwrap_err();
        assert!(matches!(error, Error::Row { row: 1, .. }), "{error}");
        let one = masked(all(&scores, 0.5, true), &[0b10]);
        assert_eq!(select(&[one], HALF_UP).unwrap(), [false, true]);
        let none = masked(all(&scores, 1.0, true), &[0]);
        assert_eq!(select(&[none], HALF_UP).unwrap(), [false; 2]);
        let excluded = Excluded::new(&[7]);
        let candidates = Candidates {
            mask: None,
            ids: Some((&[7, 8], &excluded)),
        };
        let row = Row {
            candidates,
            ..all(&scores, 0.5, true)
        };
        assert_eq!(select(&[row], HALF_UP).unwrap(), [false, true]);
    }

    #[test]
    fn random_selects_the_number_and_differs_by_key() {
        let row = |key| Row {
            order: Order::Random { key, length: 1000 },
            candidates: Candidates::default(),
            amount: Amount::Ratio(0.3),
        };
        let one = select(&[row(random_key(0, 1, 2))], HALF_UP).unwrap();
        assert_eq!(one.iter().filter(|is| **is).count(), 300);
        for other in [
            random_key(1, 1, 2),
            random_key(0, 2, 2),
            random_key(0, 1, 1),
        ] {
            assert_ne!(select(&[row(other)], HALF_UP).unwrap(), one);
        }
        let amount = Amount::Threshold(0.0);
        assert!(select(&[Row { amount, ..row(0) }], HALF_UP).is_err());
    }

    proptest! {
        #[test]
        fn agrees_with_a_stable_sort(
            rows in prop::collection::vec(prop::collection::vec(-3i8..3, 0..40), 0..20),
            bytes in prop::collection::vec(any::<u8>(), 6),
            ids in prop::collection::vec(0u32..100, 40),
            ratio in 0.01f64..=1.0, limit in -3i8..4, minimum in 0usize..4,
            largest: bool, masked: bool, excluding: bool, kind in 0..3,
        ) {
            let rows: Vec<Vec<f32>> = rows.into_iter().map(|r| r.into_iter().map(f32::from).collect()).collect();
            let excluded = Excluded::new(&(0..30).collect::<Vec<_>>());
            let amount = if kind == 1 { Amount::Threshold(f32::from(limit)) } else { Amount::Ratio(ratio) };
            let rows: Vec<Row<'_>> = rows.iter().map(|scores| {
                let mask = masked.then(|| Bits::new(&bytes, 3, scores.len()));
                let ids = excluding.then(|| (&ids[..scores.len()], &excluded));
                let random = Order::Random { key: u64::from(bytes[0]), length: scores.len() };
                let order = if kind == 2 { random } else { Order::Scores { scores, largest } };
                Row { order, candidates: Candidates { mask, ids }, amount }
            }).collect();
            for rounding in [Rounding::HalfUp, Rounding::Floor, Rounding::Ceil] {
                let rule = Rule { rounding, minimum };
                let expected: Vec<bool> = rows.iter().flat_map(|row| slow(row, rule)).collect();
                prop_assert_eq!(select(&rows, rule).unwrap(), expected);
            }
        }
    }
}
