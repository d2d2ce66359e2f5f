//! The Python shim: converts Arrow columns, releases the GIL, maps errors. No logic lives here.

use mimalloc::MiMalloc;
use pyo3::prelude::*;

mod align;
mod arrow;
mod edit;
mod error;
mod formats;
mod pack;
mod parquet;
mod reject;
mod select;
mod template;
mod tokenize;
mod truncate;

/// Columns are large and short-lived: the system's allocator gives their pages back, and takes them again, all the time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[pymodule]
fn _rust(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    align::register(module)?;
    edit::register(module)?;
    formats::register(module)?;
    pack::register(module)?;
    parquet::register(module)?;
    select::register(module)?;
    template::register(module)?;
    tokenize::register(module)?;
    truncate::register(module)
}
