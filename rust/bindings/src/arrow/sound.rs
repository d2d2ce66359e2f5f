//! Places that an array from outside says its values stand at: looked at before anything is read by them.

use arrow_array::types::ByteViewType;
use arrow_array::{Array, GenericByteViewArray, OffsetSizeTrait};
use arrow_buffer::Buffer;
use pyo3::PyResult;
use pyo3::exceptions::PyValueError;

/// Bytes of a view that stand in the view itself.
const INLINE: u32 = 12;

fn lies(name: &str, what: &str) -> pyo3::PyErr {
    PyValueError::new_err(format!(
        "column {name} is not sound Arrow data: {what}; write it again"
    ))
}

/// Offsets must ascend from 0 or more to at most `length`.
pub fn check_offsets<O: OffsetSizeTrait>(name: &str, offsets: &[O], length: usize) -> PyResult<()> {
    let ascend = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    let at = |offset: Option<&O>| offset.map_or(0, |at| at.as_usize()); // of a negative one: beyond everything
    if ascend && at(offsets.first()) <= length && at(offsets.last()) <= length {
        return Ok(());
    }
    let rule = format!("its offsets must ascend and lie within {length}");
    Err(lies(name, &rule))
}

/// Views must lie within their buffers.
pub fn check_views<T: ByteViewType + ?Sized>(
    name: &str,
    array: &GenericByteViewArray<T>,
) -> PyResult<()> {
    let buffers = array.data_buffers();
    let fits = |(at, view): (usize, &u128)| {
        let length = *view as u32;
        let (buffer, start) = ((view >> 64) as u32, (view >> 96) as u32);
        let within = || {
            let there = buffers.get(buffer as usize).map_or(0, Buffer::len);
            start as usize + length as usize <= there
        };
        length <= INLINE || array.is_null(at) || within()
    };
    if array.views().iter().enumerate().all(fits) {
        return Ok(());
    }
    Err(lies(name, "its views must lie within their buffers"))
}
