//! Arrow list columns of one or more chunks, read line by line without a copy.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, UInt32Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, LargeListArray, PrimitiveArray, UInt32Array,
};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::DataType;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::input::AnyArray;
use pyprefopt_core::select::Bits;

/// A column of lists of `A`'s elements.
pub struct Lists<A> {
    chunks: Vec<Chunk<A>>,
    starts: Vec<usize>, // line of each chunk's first list
    len: usize,
}

struct Chunk<A> {
    offsets: OffsetBuffer<i64>,
    nulls: Option<NullBuffer>,
    values: A,
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
    /// Read an object with the Arrow capsule interface; `name` is for messages.
    pub fn from_arrow(array: AnyArray, name: &str) -> PyResult<Self> {
        let (arrays, _) = array.into_chunked_array()?.into_inner();
        let mut lists = Self {
            chunks: Vec::with_capacity(arrays.len()),
            starts: Vec::new(),
            len: 0,
        };
        for array in arrays.iter().filter(|array| !array.is_empty()) {
            let chunk = Chunk::read(array, name)?;
            lists.starts.push(lists.len);
            lists.len += array.len();
            lists.chunks.push(chunk);
        }
        Ok(lists)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Chunk and element range of a line; none where the list is null.
    fn locate(&self, line: usize) -> Option<(&A, Range<usize>)> {
        let at = self.starts.partition_point(|&start| start <= line) - 1;
        let (chunk, index) = (&self.chunks[at], line - self.starts[at]);
        if chunk
            .nulls
            .as_ref()
            .is_some_and(|nulls| nulls.is_null(index))
        {
            return None;
        }
        Some((
            &chunk.values,
            chunk.offsets[index] as usize..chunk.offsets[index + 1] as usize,
        ))
    }

    /// Elements in the list, none where it is null.
    pub fn length(&self, line: usize) -> Option<usize> {
        self.locate(line).map(|(_, range)| range.len())
    }
}

impl<T: ArrowPrimitiveType> Lists<PrimitiveArray<T>>
where
    PrimitiveArray<T>: Elements,
{
    /// The list of a line, none where it is null.
    pub fn get(&self, line: usize) -> Option<&[T::Native]> {
        self.locate(line)
            .map(|(values, range)| &values.values()[range])
    }
}

impl Lists<BooleanArray> {
    /// The list of a line, none where it is null.
    pub fn bits(&self, line: usize) -> Option<Bits<'_>> {
        self.locate(line).map(|(values, range)| {
            let buffer = values.values();
            Bits::new(buffer.values(), buffer.offset() + range.start, range.len())
        })
    }
}

impl<A: Elements> Chunk<A> {
    fn read(array: &ArrayRef, name: &str) -> PyResult<Self> {
        let refuse = |rule: &str| {
            let kind = array.data_type();
            Err(PyValueError::new_err(format!(
                "{name} must be lists of {:?} {rule}, got {kind}",
                A::TYPE
            )))
        };
        let (offsets, elements) = match array.data_type() {
            DataType::LargeList(_) => {
                let list: &LargeListArray = array.as_list();
                (list.offsets().clone(), list.values().clone())
            }
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let wide: ScalarBuffer<i64> = list
                    .offsets()
                    .iter()
                    .map(|&offset| i64::from(offset))
                    .collect();
                (OffsetBuffer::new(wide), list.values().clone())
            }
            _ => return refuse("(Arrow list or large_list)"),
        };
        if elements.data_type() != &A::TYPE {
            return refuse("(cast the column)");
        }
        match A::cast(&elements).without_nulls() {
            Some(values) => Ok(Self {
                offsets,
                nulls: array.nulls().cloned(),
                values,
            }),
            None => refuse("without null elements"),
        }
    }
}
