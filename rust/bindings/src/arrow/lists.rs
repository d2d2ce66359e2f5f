//! Arrow lists, read line by line without a copy.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, UInt32Type};
use arrow_array::{Array, ArrayRef, BooleanArray, Float32Array, PrimitiveArray, UInt32Array};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::DataType;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::input::AnyArray;
use pyprefopt_core::select::Bits;

use super::columns::wrong_type;
use super::sound::check_offsets;

/// The lists of an array over its elements.
pub struct Lists<A> {
    offsets: OffsetBuffer<i64>,
    nulls: Option<NullBuffer>,
    pub values: A,
}

impl<'a> Lists<&'a ArrayRef> {
    /// Read lists of anything, of 32 or 64 bit offsets.
    pub fn new(name: &str, array: &'a dyn Array) -> PyResult<Self> {
        Self::read(name, array)?.ok_or_else(|| wrong_type(name, "list", array))
    }

    /// The lists, whose offsets lie within their values; none where the array has another type.
    fn read(name: &str, array: &'a dyn Array) -> PyResult<Option<Self>> {
        let (offsets, values) = if let Some(lists) = array.as_list_opt::<i64>() {
            check_offsets(name, lists.offsets(), lists.values().len())?;
            (lists.offsets().clone(), lists.values())
        } else {
            let Some(lists) = array.as_list_opt::<i32>() else {
                return Ok(None);
            };
            check_offsets(name, lists.offsets(), lists.values().len())?;
            let wide: ScalarBuffer<i64> = lists.offsets().iter().map(|&at| i64::from(at)).collect();
            (OffsetBuffer::new(wide), lists.values())
        };
        Ok(Some(Self {
            offsets,
            nulls: array.nulls().cloned(),
            values,
        }))
    }
}

impl<A> Lists<A> {
    /// Where list `index` stands in `values`; none where it is null.
    fn locate(&self, index: usize) -> Option<Range<usize>> {
        let null = |nulls: &NullBuffer| nulls.is_null(index);
        if self.nulls.as_ref().is_some_and(null) {
            return None;
        }
        Some(self.offsets[index] as usize..self.offsets[index + 1] as usize)
    }

    /// Where list `index` stands in `values`; a null list is empty.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.locate(index).unwrap_or(0..0)
    }
}

/// An array that can be the elements of a list column.
pub trait Elements: Array + Clone + Sized {
    const TYPE: DataType;
    fn cast(array: &ArrayRef) -> Self;
    /// Do away with nulls among the elements, or say that there must be none.
    fn without_nulls(self) -> Option<Self>;
}

fn dense<T: ArrowPrimitiveType>(array: &ArrayRef) -> PrimitiveArray<T> {
    array.as_primitive::<T>().clone()
}

impl Elements for UInt32Array {
    const TYPE: DataType = DataType::UInt32;
    fn cast(array: &ArrayRef) -> Self {
        dense::<UInt32Type>(array)
    }
    fn without_nulls(self) -> Option<Self> {
        (self.null_count() == 0).then_some(self)
    }
}

impl Elements for Float32Array {
    const TYPE: DataType = DataType::Float32;
    fn cast(array: &ArrayRef) -> Self {
        dense::<Float32Type>(array)
    }
    /// Nulls become NaN, which the kernels refuse where they would read it.
    fn without_nulls(self) -> Option<Self> {
        if self.null_count() == 0 {
            return Some(self);
        }
        Some(
            self.iter()
                .map(|value| Some(value.unwrap_or(f32::NAN)))
                .collect(),
        )
    }
}

impl Elements for BooleanArray {
    const TYPE: DataType = DataType::Boolean;
    fn cast(array: &ArrayRef) -> Self {
        array.as_boolean().clone()
    }
    fn without_nulls(self) -> Option<Self> {
        (self.null_count() == 0).then_some(self)
    }
}

impl<A: Elements> Lists<A> {
    fn of_elements(array: &ArrayRef, name: &str) -> PyResult<Self> {
        let refuse = |rule: &str| {
            let kind = array.data_type();
            PyValueError::new_err(format!(
                "{name} must be lists of {:?} {rule}, got {kind}",
                A::TYPE
            ))
        };
        let lists =
            Lists::read(name, array)?.ok_or_else(|| refuse("(Arrow list or large_list)"))?;
        if lists.values.data_type() != &A::TYPE {
            return Err(refuse("(cast the column)"));
        }
        let values = A::cast(lists.values).without_nulls();
        Ok(Self {
            offsets: lists.offsets,
            nulls: lists.nulls,
            values: values.ok_or_else(|| refuse("without null elements"))?,
        })
    }
}

/// A column of lists of `A`'s elements, in one or more chunks that are read as one.
pub struct ListColumn<A> {
    chunks: Vec<Lists<A>>,
    starts: Vec<usize>, // line of each chunk's first list
    len: usize,
}

impl<A: Elements> ListColumn<A> {
    /// Read an object with the Arrow capsule interface; `name` is for messages.
    pub fn new(array: AnyArray, name: &str) -> PyResult<Self> {
        let (arrays, _) = array.into_chunked_array()?.into_inner();
        let mut column = Self {
            chunks: Vec::with_capacity(arrays.len()),
            starts: Vec::new(),
            len: 0,
        };
        for array in arrays.iter().filter(|array| !array.is_empty()) {
            column.chunks.push(Lists::of_elements(array, name)?);
            column.starts.push(column.len);
            column.len += array.len();
        }
        Ok(column)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Elements and the range of a line in them; none where the list is null.
    fn locate(&self, line: usize) -> Option<(&A, Range<usize>)> {
        let at = self.starts.partition_point(|&start| start <= line) - 1;
        let lists = &self.chunks[at];
        let range = lists.locate(line - self.starts[at])?;
        Some((&lists.values, range))
    }

    /// Elements in the list, none where it is null.
    pub fn length(&self, line: usize) -> Option<usize> {
        self.locate(line).map(|(_, range)| range.len())
    }
}

impl<T: ArrowPrimitiveType> ListColumn<PrimitiveArray<T>>
where
    PrimitiveArray<T>: Elements,
{
    /// The list of a line, none where it is null.
    pub fn get(&self, line: usize) -> Option<&[T::Native]> {
        self.locate(line)
            .map(|(values, range)| &values.values()[range])
    }
}

impl ListColumn<BooleanArray> {
    /// The list of a line, none where it is null.
    pub fn bits(&self, line: usize) -> Option<Bits<'_>> {
        self.locate(line).map(|(values, range)| {
            let buffer = values.values();
            Bits::new(buffer.values(), buffer.offset() + range.start, range.len())
        })
    }
}
