//! Text files whose responses are cut, piece by piece.

use std::sync::Arc;

use arrow_array::{ArrayRef, LargeStringArray};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3_arrow::PyArray;
use pyprefopt_core::formats::{Cutter, Layout, Shortening, Written};
use pyprefopt_core::truncate::{Counter, Cut};

use crate::error::to_py;
use crate::formats::{Texts, format_of};
use crate::tokenize::Tokenizer;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<FileCutter>()
}

/// Cuts the responses of a file's rows and leaves the rest as it is written. Errors go on behind the file's name.
#[pyclass(module = "pyprefopt._rust")]
pub struct FileCutter {
    cutter: Cutter,
    tokenizer: Option<Py<Tokenizer>>,
    unit: String,
    cut: Cut,
    of_shortest: bool,
    ended: bool,
}

fn how<'a>(
    tokenizer: Option<&'a Py<Tokenizer>>,
    unit: &str,
    cut: Cut,
    (of_shortest, ended): (bool, bool),
) -> PyResult<Shortening<'a>> {
    let encoder = tokenizer.map(|tokenizer| tokenizer.get().encoder());
    Ok(Shortening {
        counter: Counter::new(unit, encoder).map_err(to_py)?,
        cut,
        of_shortest,
        ended,
    })
}

#[pymethods]
impl FileCutter {
    /// `layout` and `written` are lines, array or csv; the delimiters are one byte. `format` or `columns` says what is
    /// cut; without either chosen and rejected.
    #[new]
    #[allow(clippy::too_many_arguments)]
    #[pyo3(signature = (
        layout, written, *, delimiter = b',', written_delimiter = b',', row_bytes, format = None, columns = None, unit,
        ratio = None, length = None, rounding = "ceil", tokenizer = None, of_shortest = false, ended = false
    ))]
    fn new(
        layout: &str,
        written: &str,
        delimiter: u8,
        written_delimiter: u8,
        row_bytes: usize,
        format: Option<&str>,
        columns: Option<Vec<String>>,
        unit: String,
        ratio: Option<f64>,
        length: Option<usize>,
        rounding: &str,
        tokenizer: Option<Py<Tokenizer>>,
        of_shortest: bool,
        ended: bool,
    ) -> PyResult<Self> {
        let unknown = |name: &str| PyValueError::new_err(format!("unknown layout '{name}'"));
        let layout = match layout {
            "lines" => Layout::Lines,
            "array" => Layout::Array,
            "csv" => Layout::Records { delimiter },
            other => return Err(unknown(other)),
        };
        let written = match written {
            "lines" => Written::Lines,
            "array" => Written::Array,
            "csv" => Written::Csv {
                delimiter: written_delimiter,
            },
            other => return Err(unknown(other)),
        };
        let format = format.map(format_of).transpose()?;
        let cut = Cut::new(ratio, length, rounding).map_err(to_py)?;
        how(tokenizer.as_ref(), &unit, cut, (of_shortest, ended))?;
        Ok(Self {
            cutter: Cutter::new(format, columns, layout, written, row_bytes),
            tokenizer,
            unit,
            cut,
            of_shortest,
            ended,
        })
    }

    /// What is to be written after this piece of the file.
    fn push<'py>(&mut self, py: Python<'py>, piece: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let switches = (self.of_shortest, self.ended);
        let how = how(self.tokenizer.as_ref(), &self.unit, self.cut, switches)?;
        let cutter = &mut self.cutter;
        let out = py.detach(|| cutter.push(piece, &how)).map_err(to_py)?;
        Ok(PyBytes::new(py, &out))
    }

    /// What is to be written at the end.
    fn finish<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let switches = (self.of_shortest, self.ended);
        let how = how(self.tokenizer.as_ref(), &self.unit, self.cut, switches)?;
        let cutter = &mut self.cutter;
        let out = py.detach(|| cutter.finish(&how)).map_err(to_py)?;
        Ok(PyBytes::new(py, &out))
    }

    /// A column of JSON objects, typed rows, after the cut; and the pairs that it has made the same.
    #[allow(clippy::needless_pass_by_value)]
    fn cut_rows(&self, py: Python<'_>, rows: Texts) -> PyResult<(PyArray, u64)> {
        rows.check(None)?;
        let switches = (self.of_shortest, self.ended);
        let how = how(self.tokenizer.as_ref(), &self.unit, self.cut, switches)?;
        let (lines, same) = py
            .detach(|| self.cutter.cut_rows(&rows.split().0, &how))
            .map_err(to_py)?;
        let lines: ArrayRef = Arc::new(LargeStringArray::from_iter_values(lines));
        Ok((PyArray::from_array_ref(lines), same))
    }

    /// Rows so far.
    #[getter]
    fn rows(&self) -> u64 {
        self.cutter.rows()
    }

    /// Pairs that the cut has made the same so far.
    #[getter]
    fn same(&self) -> u64 {
        self.cutter.same()
    }

    /// A field that was to be cut and is in no row.
    #[getter]
    fn missing(&self) -> Option<&str> {
        self.cutter.missing()
    }
}
