//! Selection of tokens by top-k%, threshold or chance.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Float32Array, LargeListArray, UInt32Array};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{DataType, Field};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3_arrow::PyArray;
use pyo3_arrow::input::AnyArray;
use pyprefopt_core::rounding::Rounding;
use pyprefopt_core::select::{self, Amount, Candidates, Excluded, Order, Row, Rule, random_key};
use pyprefopt_core::{Error, Result};

use crate::arrow::{Elements, ListColumn, bitmap};
use crate::error::to_py;

/// What decides the order of the tokens, for all lines.
enum Orders<'a> {
    Scores(ListColumn<Float32Array>),
    /// Lengths (negative: a null line), seed, and the segment of each line.
    Random(&'a [i64], u64, Option<&'a [u64]>),
}

impl Orders<'_> {
    fn lines(&self) -> usize {
        match self {
            Self::Scores(scores) => scores.len(),
            Self::Random(lengths, ..) => lengths.len(),
        }
    }
}

/// The columns and settings of a selection. `sides[side[line]]` is the line's amount and end of the scores; a line
/// whose side is not in `sides` becomes null. `rows` names lines in errors and in random keys.
struct Selection<'a> {
    orders: Orders<'a>,
    masks: Option<ListColumn<BooleanArray>>,
    ids: Option<ListColumn<UInt32Array>>,
    excluded: Excluded,
    threshold: bool,
    sides: Vec<(f64, bool)>,
    side: Option<&'a [u8]>,
    rows: Option<&'a [u64]>,
}

impl Selection<'_> {
    /// The kernel's row of a line; none where the line is null or has no side.
    fn row(&self, line: usize) -> Result<Option<Row<'_>>> {
        let side = self.side.map_or(0, |side| side[line] as usize);
        let Some(&(amount, largest)) = self.sides.get(side) else {
            return Ok(None);
        };
        let order = match &self.orders {
            Orders::Scores(scores) => scores
                .get(line)
                .map(|scores| Order::Scores { scores, largest }),
            Orders::Random(lengths, seed, segments) => {
                usize::try_from(lengths[line]).ok().map(|length| {
                    let row = self.rows.map_or(line as u64, |rows| rows[line]);
                    let segment = segments.map_or(0, |segments| segments[line]);
                    let key = random_key(*seed, row, segment);
                    Order::Random { key, length }
                })
            }
        };
        let Some(order) = order else {
            return self.null(line);
        };
        let length = match order {
            Order::Scores { scores, .. } => scores.len(),
            Order::Random { length, .. } => length,
        };
        fits("mask", self.masks.as_ref(), line, length)?;
        fits("ids", self.ids.as_ref(), line, length)?;
        let ids = self.ids.as_ref().and_then(|ids| ids.get(line));
        Ok(Some(Row {
            order,
            candidates: Candidates {
                mask: self.masks.as_ref().and_then(|masks| masks.bits(line)),
                ids: ids.map(|ids| (ids, &self.excluded)),
            },
            amount: if self.threshold {
                Amount::Threshold(amount as f32)
            } else {
                Amount::Ratio(amount)
            },
        }))
    }

    /// A response of a segments frame needs scores, or (by chance) a mask; any other null list stays null.
    fn null<T>(&self, line: usize) -> Result<Option<T>> {
        if self.side.is_none() {
            return Ok(None);
        }
        let message = match self.orders {
            Orders::Scores(_) => "scores are null; a response needs one score per token",
            Orders::Random(..) => "mask is null; a response needs one mask bit per token",
        };
        Err(Error::Row {
            row: line,
            message: message.into(),
        })
    }

    fn check_lines(&self) -> Result<()> {
        let lines = self.orders.lines();
        let (masks, ids) = (
            self.masks.as_ref().map(ListColumn::len),
            self.ids.as_ref().map(ListColumn::len),
        );
        let segments = match self.orders {
            Orders::Random(_, _, segments) => segments.map(<[u64]>::len),
            Orders::Scores(_) => None,
        };
        for (name, found) in [
            ("mask", masks),
            ("ids", ids),
            ("kind", self.side.map(<[u8]>::len)),
            ("rows", self.rows.map(<[u64]>::len)),
            ("segments", segments),
        ] {
            if let Some(found) = found.filter(|&found| found != lines) {
                let message = format!(
                    "{name} has {found} lines but scores has {lines}; both must be of the same frame"
                );
                return Err(Error::Argument(message));
            }
        }
        Ok(())
    }

    /// Select in every line that has a side; the others become null.
    fn run(&self, rule: Rule) -> Result<LargeListArray> {
        self.check_lines()?;
        let rows = (0..self.orders.lines())
            .map(|line| self.row(line))
            .collect::<Result<Vec<_>>>()?;
        let nulls: NullBuffer = rows.iter().map(Option::is_some).collect();
        let lines: Vec<usize> = (0..rows.len())
            .filter(|&line| rows[line].is_some())
            .collect();
        let offsets = OffsetBuffer::from_lengths(rows.iter().map(|row| match row {
            None => 0,
            Some(Row {
                order: Order::Scores { scores, .. },
                ..
            }) => scores.len(),
            Some(Row {
                order: Order::Random { length, .. },
                ..
            }) => *length,
        }));
        let rows: Vec<Row<'_>> = rows.into_iter().flatten().collect();
        let selected =
            select::select(&rows, rule).map_err(|error| renamed(error, |row| lines[row]))?;
        let values = BooleanArray::new(bitmap(&selected), None);
        let field = Arc::new(Field::new("item", DataType::Boolean, true));
        let nulls = (nulls.null_count() > 0).then_some(nulls);
        Ok(LargeListArray::new(field, offsets, Arc::new(values), nulls))
    }
}

/// The same error with the row under another number.
fn renamed(error: Error, name: impl Fn(usize) -> usize) -> Error {
    match error {
        Error::Row { row, message } => Error::Row {
            row: name(row),
            message,
        },
        other @ Error::Argument(_) => other,
    }
}

/// One entry a token in the list of a column that goes with the scores.
fn fits<A: Elements>(
    name: &str,
    lists: Option<&ListColumn<A>>,
    line: usize,
    length: usize,
) -> Result<()> {
    let Some(found) = lists.map(|lists| lists.length(line)) else {
        return Ok(());
    };
    if found == Some(length) {
        return Ok(());
    }
    let found = found.map_or("null".into(), |found| found.to_string());
    Err(Error::Row {
        row: line,
        message: format!(
            "{name} has {found} entries for {length} scores; both must have one per token"
        ),
    })
}

/// list<bool> of the tokens selected by `top_k`, `threshold` (both by scores) or `random` (by lengths). See `Selection`.
#[pyfunction]
#[pyo3(signature = (scores, *, method, sides, rounding, minimum, mask = None, ids = None, excluded = vec![],
    lengths = None, seed = 0, side = None, rows = None, segments = None))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)]
fn select_tokens(
    py: Python<'_>,
    scores: Option<AnyArray>,
    method: &str,
    sides: Vec<(f64, bool)>,
    rounding: &str,
    minimum: usize,
    mask: Option<AnyArray>,
    ids: Option<AnyArray>,
    excluded: Vec<u32>,
    lengths: Option<PyReadonlyArray1<'_, i64>>,
    seed: u64,
    side: Option<PyReadonlyArray1<'_, u8>>,
    rows: Option<PyReadonlyArray1<'_, u64>>,
    segments: Option<PyReadonlyArray1<'_, u64>>,
) -> PyResult<PyArray> {
    let argument = |message: &str| to_py(Error::Argument(message.into()));
    let lengths = lengths
        .as_ref()
        .map(PyReadonlyArray1::as_slice)
        .transpose()?;
    let segments = segments
        .as_ref()
        .map(PyReadonlyArray1::as_slice)
        .transpose()?;
    let orders = match (method, scores, lengths) {
        ("top_k" | "threshold", Some(scores), None) => {
            Orders::Scores(ListColumn::new(scores, "scores")?)
        }
        ("random", None, Some(lengths)) => Orders::Random(lengths, seed, segments),
        ("top_k" | "threshold" | "random", ..) => {
            return Err(argument(
                "'top_k' and 'threshold' take scores, 'random' takes lengths",
            ));
        }
        _ => return Err(argument("method must be 'top_k', 'threshold' or 'random'")),
    };
    let selection = Selection {
        orders,
        masks: mask.map(|mask| ListColumn::new(mask, "mask")).transpose()?,
        ids: ids.map(|ids| ListColumn::new(ids, "ids")).transpose()?,
        excluded: Excluded::new(&excluded),
        threshold: method == "threshold",
        sides,
        side: side.as_ref().map(PyReadonlyArray1::as_slice).transpose()?,
        rows: rows.as_ref().map(PyReadonlyArray1::as_slice).transpose()?,
    };
    let rounding = Rounding::parse(rounding).map_err(to_py)?;
    let selected = py.detach(|| selection.run(Rule { rounding, minimum }));
    let name = |line: usize| selection.rows.map_or(line, |rows| rows[line] as usize);
    match selected {
        Ok(selected) => Ok(PyArray::from_array_ref(Arc::new(selected) as ArrayRef)),
        Err(error) => Err(to_py(renamed(error, name))),
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(select_tokens, module)?)
}
