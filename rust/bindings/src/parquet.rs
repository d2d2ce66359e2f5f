//! What the footer of a Parquet file says, as dicts.

use std::collections::HashSet;

use pyo3::prelude::*;
use pyprefopt_core::parquet::{self, Footer, Leaf};

use crate::error::to_py;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(read_footer, module)?)
}

#[derive(IntoPyObject)]
struct RowGroup {
    rows: i64,
    /// Of all its pages, unpacked.
    bytes: i64,
    chunks: Vec<Chunk>,
}

/// The values of one of the columns that were asked for.
#[derive(IntoPyObject)]
struct Chunk {
    /// With dots between the names.
    path: String,
    in_lists: bool,
    is_text: bool,
    width: i64,
    values: i64,
    bytes: i64,
    packed: i64,
    codec: i64,
    is_delta: bool,
    first_page: i64,
}

/// The row groups, with what they say of these columns and what is in them.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // PyO3 hands over what it converts
fn read_footer(py: Python<'_>, footer: &[u8], columns: HashSet<String>) -> PyResult<Vec<RowGroup>> {
    let Footer { leaves, row_groups } = py.detach(|| Footer::read(footer)).map_err(to_py)?;
    let is_wanted = |leaf: &Leaf| leaf.path.first().is_some_and(|name| columns.contains(name));
    let wanted: Vec<(usize, &Leaf)> = leaves
        .iter()
        .enumerate()
        .filter(|(_, leaf)| is_wanted(leaf))
        .collect();
    let chunk = |leaf: &Leaf, chunk: &parquet::Chunk| Chunk {
        path: leaf.path.join("."),
        in_lists: leaf.in_lists,
        is_text: leaf.is_text,
        width: leaf.width,
        values: chunk.values,
        bytes: chunk.bytes,
        packed: chunk.packed,
        codec: chunk.codec,
        is_delta: chunk.is_delta,
        first_page: chunk.first_page,
    };
    let group = |group: parquet::RowGroup| RowGroup {
        rows: group.rows,
        bytes: group.bytes,
        chunks: wanted
            .iter()
            .map(|&(at, leaf)| chunk(leaf, &group.chunks[at]))
            .collect(),
    };
    Ok(row_groups.into_iter().map(group).collect())
}
