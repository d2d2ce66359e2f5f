//! Top-k% token selection (`SePO`, Eq. 25), and the view of a bitmap that masks arrive in.

use rayon::prelude::*;

use crate::{Error, Result};

/// Tokens that one task of the thread pool takes at least.
const TASK_TOKENS: usize = 1 << 15;

/// A part of an Arrow bitmap (least significant bit first).
///
/// ```
/// use pyprefopt_core::select::Bits;
/// let bits = Bits::new(&[0b0000_1010], 1, 3);
/// assert_eq!((bits.get(0), bits.get(1), bits.get(2)), (true, false, true));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Bits<'a> {
    bytes: &'a [u8],
    offset: usize,
    len: usize,
}

impl<'a> Bits<'a> {
    /// `len` bits of `bytes`, from bit `offset` on.
    pub fn new(bytes: &'a [u8], offset: usize, len: usize) -> Self {
        debug_assert!(offset + len <= bytes.len() * 8);
        Self { bytes, offset, len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bit `index`, which must be below `len`.
    #[inline]
    pub fn get(&self, index: usize) -> bool {
        let at = self.offset + index;
        self.bytes[at >> 3] >> (at & 7) & 1 == 1
    }
}

/// How `ratio * candidates` becomes a number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    HalfUp,
    Floor,
}

impl Rounding {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "half_up" => Ok(Self::HalfUp),
            "floor" => Ok(Self::Floor),
            _ => Err(Error::Argument(format!(
                "rounding must be 'half_up' or 'floor', got '{name}'"
            ))),
        }
    }
}

/// One list of scores, which of its tokens may be selected (none given: all), and how many of them at which end.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    pub scores: &'a [f32],
    pub candidates: Option<Bits<'a>>,
    pub ratio: f64,
    pub largest: bool,
}

/// Number of tokens that are selected of `candidates` (at least 1 where there is a candidate).
///
/// The product `ratio * candidates` and the sum with 0.5 are rounded to float64 and then floored; nothing is
/// added to make up for ratios that have no exact binary form. `math.floor(ratio * candidates + 0.5)` in Python
/// gives the same number.
///
/// ```
/// use pyprefopt_core::select::{how_many, Rounding};
/// assert_eq!(how_many(0.3, 5, Rounding::HalfUp), 2); // 1.5
/// assert_eq!(how_many(0.3, 5, Rounding::Floor), 1);
/// assert_eq!(how_many(0.1, 2, Rounding::Floor), 1);
/// assert_eq!(how_many(0.5, 0, Rounding::HalfUp), 0);
/// ```
pub fn how_many(ratio: f64, candidates: usize, rounding: Rounding) -> usize {
    let exact = ratio * candidates as f64;
    let rounded = match rounding {
        Rounding::HalfUp => (exact + 0.5).floor(),
        Rounding::Floor => exact.floor(),
    };
    (rounded as usize).max(1).min(candidates)
}

/// The selected tokens of all rows, one after the other; the same for any number of threads.
///
/// Ties go to the earlier token, -0.0 equals 0.0. A NaN at a candidate is an error that names the first such row.
///
/// ```
/// use pyprefopt_core::select::{top_k_mask, Rounding, Row};
/// let row = Row { scores: &[1.0, 3.0, 3.0, 2.0], candidates: None, ratio: 0.25, largest: true };
/// assert_eq!(top_k_mask(&[row], Rounding::HalfUp).unwrap(), [false, true, false, false]);
/// ```
pub fn top_k_mask(rows: &[Row<'_>], rounding: Rounding) -> Result<Vec<bool>> {
    let total = rows.iter().map(|row| row.scores.len()).sum();
    let mut selected = vec![false; total];
    let results: Vec<Result<()>> = tasks(rows, &mut selected)
        .into_par_iter()
        .map(|(first, rows, out)| select_rows(first, rows, out, rounding))
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
            tokens += rows[count].scores.len();
            count += 1;
        }
        let (own, other_rows) = rows.split_at(count);
        let (own_out, other_out) = out.split_at_mut(tokens);
        tasks.push((first, own, own_out));
        (rows, out, first) = (other_rows, other_out, first + count);
    }
    tasks
}

fn select_rows(
    first: usize,
    rows: &[Row<'_>],
    mut out: &mut [bool],
    rounding: Rounding,
) -> Result<()> {
    let mut keys = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let (own, other) = out.split_at_mut(row.scores.len());
        select_row(row, rounding, &mut keys, own).map_err(|message| Error::Row {
            row: first + index,
            message,
        })?;
        out = other;
    }
    Ok(())
}

/// Select within one row; `keys` is scratch space, `out` comes all false.
fn select_row(
    row: &Row<'_>,
    rounding: Rounding,
    keys: &mut Vec<u64>,
    out: &mut [bool],
) -> std::result::Result<(), String> {
    keys.clear();
    match row.candidates {
        None => keys.extend(
            row.scores
                .iter()
                .zip(0..)
                .map(|(&score, index)| key(score, index, row.largest)),
        ),
        Some(bits) => {
            let candidates = row
                .scores
                .iter()
                .zip(0..)
                .filter(|&(_, index)| bits.get(index as usize));
            keys.extend(candidates.map(|(&score, index)| key(score, index, row.largest)));
        }
    }
    // Checked over all scores first: this loop is vectorised, and a NaN outside the candidates is rare.
    if row
        .scores
        .iter()
        .fold(false, |found, score| found | score.is_nan())
    {
        let is_candidate = |index: usize| row.candidates.is_none_or(|bits| bits.get(index));
        if let Some(at) =
            (0..row.scores.len()).find(|&index| row.scores[index].is_nan() && is_candidate(index))
        {
            return Err(format!(
                "the score of token {at} is NaN or null; every token that may be selected needs a score"
            ));
        }
    }
    let count = how_many(row.ratio, keys.len(), rounding);
    if 0 < count && count < keys.len() {
        keys.select_nth_unstable(count - 1);
    }
    for &key in &keys[..count] {
        out[(key & 0xffff_ffff) as usize] = true;
    }
    Ok(())
}

/// A key whose ascending order is the order of selection: the wanted end of the scores first, then the earlier token.
#[inline]
fn key(score: f32, index: u32, largest: bool) -> u64 {
    let bits = (score + 0.0).to_bits(); // -0.0 + 0.0 is 0.0
    let negative = 0u32.wrapping_sub(bits >> 31); // all ones below zero
    let ascending = bits ^ (negative | 0x8000_0000);
    let ordered = if largest { !ascending } else { ascending };
    u64::from(ordered) << 32 | u64::from(index)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(scores: &[f32], ratio: f64, largest: bool) -> Row<'_> {
        Row {
            scores,
            candidates: None,
            ratio,
            largest,
        }
    }

    fn slow(row: &Row<'_>) -> Vec<bool> {
        let mut order: Vec<usize> = (0..row.scores.len())
            .filter(|&i| row.candidates.is_none_or(|b| b.get(i)))
            .collect();
        let count = how_many(row.ratio, order.len(), Rounding::HalfUp);
        order.sort_by(|&a, &b| {
            let ascending = row.scores[a].partial_cmp(&row.scores[b]).expect("no NaN");
            if row.largest {
                ascending.reverse()
            } else {
                ascending
            } // a stable sort keeps the earlier token first
        });
        let mut out = vec![false; row.scores.len()];
        order[..count].iter().for_each(|&i| out[i] = true);
        out
    }

    #[test]
    fn zeros_tie_and_infinities_order() {
        let scores = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(
            top_k_mask(&[all(&scores, 0.5, true)], Rounding::HalfUp).unwrap(),
            [true, false, true, false]
        );
        assert_eq!(
            top_k_mask(&[all(&scores, 0.5, false)], Rounding::HalfUp).unwrap(),
            [true, false, false, true]
        );
        let tied = [-0.0, 0.0];
        assert_eq!(
            top_k_mask(&[all(&tied, 0.5, true)], Rounding::HalfUp).unwrap(),
            [true, false]
        );
    }

    #[test]
    fn nan_is_an_error_at_a_candidate_only() {
        let scores = [f32::NAN, 1.0];
        let ok = [1.0];
        let error = top_k_mask(
            &[all(&ok, 0.5, true), all(&scores, 0.5, true)],
            Rounding::Floor,
        )
        .unwrap_err();
        assert!(matches!(error, Error::Row { row: 1, .. }), "{error}");
        let candidates = Some(Bits::new(&[0b10], 0, 2));
        assert_eq!(
            top_k_mask(
                &[Row {
                    candidates,
                    ..all(&scores, 0.5, true)
                }],
                Rounding::Floor
            )
            .unwrap(),
            [false, true]
        );
        let none = Some(Bits::new(&[0], 0, 2));
        assert_eq!(
            top_k_mask(
                &[Row {
                    candidates: none,
                    ..all(&scores, 1.0, true)
                }],
                Rounding::Floor
            )
            .unwrap(),
            [false; 2]
        );
    }

    proptest! {
        #[test]
        fn agrees_with_a_stable_sort(
            rows in prop::collection::vec(prop::collection::vec(-3i8..3, 0..40), 0..20),
            bytes in prop::collection::vec(any::<u8>(), 6),
            ratio in 0.01f64..=1.0, largest: bool, masked: bool,
        ) {
            let rows: Vec<Vec<f32>> = rows.into_iter().map(|r| r.into_iter().map(f32::from).collect()).collect();
            let rows: Vec<Row<'_>> = rows.iter().map(|scores| Row {
                candidates: masked.then(|| Bits::new(&bytes, 3, scores.len())), ..all(scores, ratio, largest)
            }).collect();
            let expected: Vec<bool> = rows.iter().flat_map(slow).collect();
            prop_assert_eq!(top_k_mask(&rows, Rounding::HalfUp).unwrap(), expected);
        }
    }
}
