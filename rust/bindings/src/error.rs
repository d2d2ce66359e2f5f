//! Kernel errors become Python's `ValueError`; `pyprefopt.data` adds file and remedy.

use pyo3::PyErr;
use pyo3::exceptions::PyValueError;
use pyprefopt_core::Error;

#[allow(clippy::needless_pass_by_value)] // the form that `map_err` calls
pub fn to_py(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}
