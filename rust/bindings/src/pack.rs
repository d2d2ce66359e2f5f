//! The packer: holds the columns of a segments store, gives what groups cost, their bins and packed batches.
#![allow(clippy::cast_possible_wrap)] // lines and token counts are far below 2^63
#![allow(clippy::needless_pass_by_value)] // what Python hands over is owned

use arrow_array::{BooleanArray, Float32Array, UInt32Array};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3_arrow::input::AnyArray;
use pyprefopt_core::pack::{self, Batch, Bins, Group, Kind, Layout, Response, VALUES};
use pyprefopt_core::select::Bits;
use pyprefopt_core::{Error, Result};
use rayon::prelude::*;

use crate::arrow::ListColumn;
use crate::error::to_py;

/// Columns with one entry per line, and per group `rows` and `offsets` (lines; one more than there are groups).
#[pyclass(frozen, module = "pyprefopt._rust")]
struct Packer {
    ids: ListColumn<UInt32Array>,
    mask: ListColumn<BooleanArray>,
    selected: Option<ListColumn<BooleanArray>>,
    values: [Option<ListColumn<Float32Array>>; 3],
    kinds: Vec<u8>, // 0 prompt, 1 chosen, 2 rejected, 3 response
    scores: Vec<f32>,
    rows: Vec<u64>,
    offsets: Vec<i64>,
    layout: Layout,
    ratios: (f32, f32),    // chosen, rejected
    only: Option<u8>,      // take responses of this kind alone
    last_token: bool,      // responses are read at their last token, so all of them is input
    keep_unweighted: bool, // tokens of user weight 0 are scored like the others
}

impl Packer {
    fn response(&self, line: usize) -> Response<'_> {
        let none = Bits::new(&[], 0, 0); // a null list: `Group::check` refuses its length
        let (kind, ratio) = match self.kinds[line] {
            1 => (Kind::Chosen, self.ratios.0),
            2 => (Kind::Rejected, self.ratios.1),
            _ => (Kind::Response, 1.0),
        };
        Response {
            ids: self.ids.get(line).unwrap_or_default(),
            mask: self.mask.bits(line).unwrap_or(none),
            selected: self
                .selected
                .as_ref()
                .map(|selected| selected.bits(line).unwrap_or(none)),
            values: self
                .values
                .each_ref()
                .map(|values| values.as_ref().map(|v| v.get(line).unwrap_or_default())),
            kind,
            line: line as i64,
            score: self.scores[line],
            ratio,
            whole: self.last_token,
            keep_unweighted: self.keep_unweighted,
        }
    }

    fn group(&self, group: i64) -> Result<Group<'_>> {
        let count = self.rows.len();
        let at = usize::try_from(group)
            .ok()
            .filter(|&at| at < count)
            .ok_or_else(|| {
                Error::Argument(format!(
                    "groups must be indices from 0 to {}, got {group}",
                    count as i64 - 1
                ))
            })?;
        let (prompt, end) = (self.offsets[at] as usize, self.offsets[at + 1] as usize);
        let lines =
            (prompt + 1..end).filter(|&line| self.only.is_none_or(|kind| kind == self.kinds[line]));
        Ok(Group {
            row: self.rows[at],
            prompt: self.ids.get(prompt).unwrap_or_default(),
            responses: lines.map(|line| self.response(line)).collect(),
        })
    }

    fn costs(&self, groups: &[i64]) -> Result<Vec<usize>> {
        let costs: Vec<Result<usize>> = groups
            .par_iter()
            .map(|&g| Ok(self.group(g)?.cost(self.layout)))
            .collect();
        costs.into_iter().collect()
    }

    fn bins(&self, groups: &[i64], max_tokens: usize, max_groups: Option<usize>) -> Result<Bins> {
        let costs = self.costs(groups)?;
        let row = |item: usize| self.rows[groups[item] as usize] as usize;
        let mut bins = pack::plan(&costs, max_tokens, max_groups, row)?;
        for item in &mut bins.items {
            *item = groups[*item as usize];
        }
        Ok(bins)
    }

    fn check(&self) -> Result<()> {
        let checks: Vec<Result<()>> = (0..self.rows.len() as i64)
            .into_par_iter()
            .map(|group| self.group(group)?.check())
            .collect();
        checks.into_iter().collect()
    }

    fn check_lines(&self) -> Result<()> {
        let lines = self.ids.len();
        let optional = self
            .values
            .iter()
            .zip(VALUES)
            .map(|(v, name)| (name, v.as_ref().map_or(lines, ListColumn::len)));
        let given = [
            ("mask", self.mask.len()),
            ("kinds", self.kinds.len()),
            ("scores", self.scores.len()),
            (
                "selected",
                self.selected.as_ref().map_or(lines, ListColumn::len),
            ),
            (
                "group offsets",
                self.offsets.last().map_or(0, |&end| end as usize),
            ),
        ];
        let ascending = self
            .offsets
            .windows(2)
            .all(|pair| 0 <= pair[0] && pair[0] < pair[1]);
        if self.offsets.len() != self.rows.len() + 1 || !ascending {
            return Err(Error::Argument(
                "group offsets must ascend and be one more than rows".into(),
            ));
        }
        given
            .into_iter()
            .chain(optional)
            .find(|&(_, len)| len != lines)
            .map_or(Ok(()), |(name, len)| {
                Err(Error::Argument(format!(
                    "{name} has {len} lines but the segments have {lines}"
                )))
            })
    }
}

/// Bin the items of these lengths, best-fit decreasing: offsets [bins + 1] and items, i64.
#[pyfunction]
#[pyo3(signature = (lengths, *, max_tokens, max_groups))]
fn pack_lengths<'py>(
    py: Python<'py>,
    lengths: PyReadonlyArray1<'py, i64>,
    max_tokens: usize,
    max_groups: Option<usize>,
) -> PyResult<Pair<'py>> {
    let lengths = lengths.as_slice()?;
    let bins = py
        .detach(|| pack::pack_lengths(lengths, max_tokens, max_groups))
        .map_err(to_py)?;
    Ok(to_arrays(py, bins))
}

type Pair<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>);

fn to_arrays(py: Python<'_>, bins: Bins) -> Pair<'_> {
    (bins.offsets.into_pyarray(py), bins.items.into_pyarray(py))
}

#[pymethods]
impl Packer {
    #[new]
    #[pyo3(signature = (ids, mask, kinds, scores, rows, offsets, *, layout, chosen_ratio, rejected_ratio, only,
                        last_token, keep_unweighted, selected, token_rewards, user_weights, ref_logps))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        ids: AnyArray,
        mask: AnyArray,
        kinds: PyReadonlyArray1<'_, u8>,
        scores: PyReadonlyArray1<'_, f32>,
        rows: PyReadonlyArray1<'_, u64>,
        offsets: PyReadonlyArray1<'_, i64>,
        layout: &str,
        chosen_ratio: f32,
        rejected_ratio: f32,
        only: Option<u8>,
        last_token: bool,
        keep_unweighted: bool,
        selected: Option<AnyArray>,
        token_rewards: Option<AnyArray>,
        user_weights: Option<AnyArray>,
        ref_logps: Option<AnyArray>,
    ) -> PyResult<Self> {
        let floats = |column: Option<AnyArray>, name| {
            column
                .map(|column| ListColumn::new(column, name))
                .transpose()
        };
        let packer = Self {
            ids: ListColumn::new(ids, "ids")?,
            mask: ListColumn::new(mask, "mask")?,
            selected: selected
                .map(|column| ListColumn::new(column, "selected"))
                .transpose()?,
            values: [
                floats(token_rewards, VALUES[0])?,
                floats(user_weights, VALUES[1])?,
                floats(ref_logps, VALUES[2])?,
            ],
            kinds: kinds.as_slice()?.to_vec(),
            scores: scores.as_slice()?.to_vec(),
            rows: rows.as_slice()?.to_vec(),
            offsets: offsets.as_slice()?.to_vec(),
            layout: Layout::parse(layout).map_err(to_py)?,
            ratios: (chosen_ratio, rejected_ratio),
            only,
            last_token,
            keep_unweighted,
        };
        py.detach(|| packer.check_lines().and_then(|()| packer.check()))
            .map_err(to_py)?;
        Ok(packer)
    }

    /// Input tokens that each group takes in a batch, i64.
    fn lengths<'py>(
        &self,
        py: Python<'py>,
        groups: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let groups = groups.as_slice()?;
        let costs = py.detach(|| self.costs(groups)).map_err(to_py)?;
        Ok(costs
            .into_iter()
            .map(|cost| cost as i64)
            .collect::<Vec<_>>()
            .into_pyarray(py))
    }

    /// Groups by bin, best-fit decreasing: offsets [bins + 1] and groups, i64.
    #[pyo3(signature = (groups, *, max_tokens, max_groups))]
    fn plan<'py>(
        &self,
        py: Python<'py>,
        groups: PyReadonlyArray1<'py, i64>,
        max_tokens: usize,
        max_groups: Option<usize>,
    ) -> PyResult<Pair<'py>> {
        let groups = groups.as_slice()?;
        let bins = py
            .detach(|| self.bins(groups, max_tokens, max_groups))
            .map_err(to_py)?;
        Ok(to_arrays(py, bins))
    }

    /// The arrays of one batch per bin, by name.
    fn assemble<'py>(
        &self,
        py: Python<'py>,
        bins: Vec<PyReadonlyArray1<'py, i64>>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let bins = bins
            .iter()
            .map(|bin| bin.as_slice())
            .collect::<std::result::Result<Vec<_>, _>>()?;
        if bins.iter().any(|bin| bin.is_empty()) {
            return Err(PyValueError::new_err("a bin must hold at least one group"));
        }
        let batches = py.detach(|| {
            let bins = bins
                .iter()
                .map(|bin| bin.iter().map(|&group| self.group(group)).collect());
            pack::assemble(&bins.collect::<Result<Vec<Vec<_>>>>()?, self.layout)
        });
        batches
            .map_err(to_py)?
            .into_iter()
            .map(|batch| to_dict(py, batch))
            .collect()
    }
}

/// The arrays of a batch, moved into `NumPy` without a copy.
fn to_dict(py: Python<'_>, batch: Batch) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    macro_rules! set {
        ($($name:ident)*) => { $( dict.set_item(stringify!($name), batch.$name.into_pyarray(py))?; )* };
    }
    set!(input_ids position_ids segment_offsets segment_parent hidden_index target_ids response_index token_position
         token_mask response_row response_line response_length scored_length selection_ratio response_group
         response_score pair_chosen pair_rejected);
    for (name, values) in VALUES.iter().zip(batch.values) {
        dict.set_item(name, values.map(|values| values.into_pyarray(py)))?;
    }
    let last_index = batch.last_index.map(|index| index.into_pyarray(py));
    dict.set_item("last_index", last_index)?;
    Ok(dict)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Packer>()?;
    module.add_function(wrap_pyfunction!(pack_lengths, module)?)
}
