//! Truncation of text columns and of token segments.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, LargeListArray, LargeStringArray, ListArray, StructArray, UInt32Array,
};
use arrow_schema::{ArrowError, DataType, Field, Fields};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::PyChunkedArray;
use pyprefopt_core::Result;
use pyprefopt_core::formats::shorten_chat;
use pyprefopt_core::tokenize::Encoded;
use pyprefopt_core::truncate::{self, Counter, Cut, Kept, kept_positions};
use rayon::prelude::*;

use crate::arrow::{Lists, Strings, chunked, field, structs};
use crate::error::to_py;
use crate::tokenize::Tokenizer;

/// What a line's ratio is taken of: nothing (the line is no response), its own length, or a given one.
#[derive(Clone, Copy)]
enum Base {
    None,
    Own,
    Of(usize),
}

impl Base {
    fn given(self) -> Option<usize> {
        match self {
            Self::Of(base) => Some(base),
            Self::None | Self::Own => None,
        }
    }
}

/// One `Base` a line; a negative number means the line's own length.
fn bases(base: Option<&[i64]>, first: usize, lines: usize) -> Vec<Base> {
    let read = |&number: &i64| usize::try_from(number).map_or(Base::Own, Base::Of);
    base.map_or_else(
        || vec![Base::Own; lines],
        |base| base[first..first + lines].iter().map(read).collect(),
    )
}

fn check_lines(base: Option<&[i64]>, lines: usize) -> PyResult<()> {
    let fits = base.is_none_or(|base| base.len() == lines);
    let wrong = || PyValueError::new_err("the column and base must have one entry per line");
    fits.then_some(()).ok_or_else(wrong)
}

fn broken(error: &ArrowError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Texts and one number a response (null where there is none): of strings, chats (their last content), or lists of either.
type Shortened = (ArrayRef, ArrayRef);

/// Cut texts; also how many units went of each response.
#[pyfunction]
#[pyo3(signature = (column, *, unit, ratio = None, length = None, rounding = "ceil", tokenizer = None, base = None))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)]
fn truncate_text(
    py: Python<'_>,
    column: PyChunkedArray,
    unit: &str,
    ratio: Option<f64>,
    length: Option<usize>,
    rounding: &str,
    tokenizer: Option<&Tokenizer>,
    base: Option<PyReadonlyArray1<'_, i64>>,
) -> PyResult<(PyChunkedArray, PyChunkedArray)> {
    let cut = Cut::new(ratio, length, rounding).map_err(to_py)?;
    let counter = Counter::new(unit, tokenizer.map(Tokenizer::encoder)).map_err(to_py)?;
    let shorten = |text: &str, base: Base, tokens: &mut Encoded| {
        counter.kept(text, cut, base.given(), tokens)
    };
    let base = base.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
    over_chunks(py, column, base, &shorten)
}

/// Units of each response.
#[pyfunction]
#[pyo3(signature = (column, *, unit, tokenizer = None))]
fn count_units(
    py: Python<'_>,
    column: PyChunkedArray,
    unit: &str,
    tokenizer: Option<&Tokenizer>,
) -> PyResult<PyChunkedArray> {
    let counter = Counter::new(unit, tokenizer.map(Tokenizer::encoder)).map_err(to_py)?;
    let count = |text: &str, _: Base, tokens: &mut Encoded| {
        let cut = counter.count(text, tokens)?;
        Ok(Kept { kept: 0, cut })
    };
    over_chunks(py, column, None, &count).map(|(_, counts)| counts)
}

fn over_chunks(
    py: Python<'_>,
    column: PyChunkedArray,
    base: Option<&[i64]>,
    shorten: &(impl Fn(&str, Base, &mut Encoded) -> Result<Kept> + Sync),
) -> PyResult<(PyChunkedArray, PyChunkedArray)> {
    let (mut chunks, field) = column.into_inner();
    if chunks.is_empty() {
        chunks.push(arrow_array::new_empty_array(field.data_type()));
    }
    check_lines(base, chunks.iter().map(Array::len).sum())?;
    let (texts, numbers): (Vec<_>, Vec<_>) = py.detach(|| {
        let mut first = 0;
        let one = |chunk: &ArrayRef| {
            first += chunk.len();
            shorten_column(
                chunk,
                &bases(base, first - chunk.len(), chunk.len()),
                shorten,
            )
        };
        let done = chunks.iter().map(one).collect::<PyResult<Vec<_>>>()?;
        Ok::<_, PyErr>(done.into_iter().unzip())
    })?;
    let types = (texts[0].data_type().clone(), numbers[0].data_type().clone());
    Ok((chunked(texts, types.0)?, chunked(numbers, types.1)?))
}

fn shorten_column(
    column: &ArrayRef,
    base: &[Base],
    shorten: &(impl Fn(&str, Base, &mut Encoded) -> Result<Kept> + Sync),
) -> PyResult<Shortened> {
    let item = match column.data_type() {
        DataType::List(item) | DataType::LargeList(item) => item.data_type(),
        _ => return shorten_strings(column, base, true, shorten),
    };
    let lists = Lists::new("responses", column.as_ref())?;
    let mut inner = vec![Base::None; lists.values.len()];
    if matches!(item, DataType::Struct(_)) {
        for (line, &base) in base.iter().enumerate() {
            if let Some(last) = lists.range(line).last() {
                inner[last] = base;
            }
        }
        return shorten_chats(column, &lists, &inner, shorten);
    }
    for (line, &base) in base.iter().enumerate() {
        inner[lists.range(line)].fill(base);
    }
    let (texts, numbers) = shorten_column(lists.values, &inner, shorten)?;
    Ok((relist(column, texts)?, relist(column, numbers)?))
}

/// Strings, cut; those that spell a chat in its last content, if they may (`may_spell`).
fn shorten_strings(
    column: &ArrayRef,
    base: &[Base],
    may_spell: bool,
    shorten: &(impl Fn(&str, Base, &mut Encoded) -> Result<Kept> + Sync),
) -> PyResult<Shortened> {
    let texts = Strings::new("text", column)?;
    let one = |tokens: &mut Encoded, line: usize| match (texts.get(line), base[line]) {
        (None, _) => Ok((None, None)),
        (text, Base::None) => Ok((text.map(Cow::Borrowed), None)),
        (Some(text), base) => {
            if may_spell && text.trim_start().starts_with(['[', '{']) {
                let found = shorten_chat(text, |content| shorten(content, base, tokens))?;
                if let Some((text, cut)) = found {
                    return Ok((Some(Cow::Owned(text)), cut.map(|cut| cut as u32)));
                }
            }
            let Kept { kept, cut } = shorten(text, base, tokens)?;
            Ok((Some(Cow::Borrowed(&text[..kept])), Some(cut as u32)))
        }
    };
    let done: Vec<(Option<Cow<str>>, Option<u32>)> = (0..column.len())
        .into_par_iter()
        .map_init(Encoded::default, one)
        .collect::<Result<_>>()
        .map_err(to_py)?;
    let texts: LargeStringArray = done.iter().map(|(text, _)| text.as_deref()).collect();
    let numbers: UInt32Array = done.iter().map(|(_, number)| *number).collect();
    Ok((Arc::new(texts), Arc::new(numbers)))
}

/// Chats whose last content is cut; the number of a chat is that of its last message.
fn shorten_chats(
    column: &ArrayRef,
    lists: &Lists<&ArrayRef>,
    base: &[Base],
    shorten: &(impl Fn(&str, Base, &mut Encoded) -> Result<Kept> + Sync),
) -> PyResult<Shortened> {
    let messages = structs("chat", column, lists.values)?;
    let (content, cut) = shorten_strings(field("content", messages)?, base, false, shorten)?;
    let numbers = cut.as_primitive::<arrow_array::types::UInt32Type>();
    let last = |line| lists.range(line).last();
    let of_chat = |line| {
        last(line)
            .filter(|&at| numbers.is_valid(at))
            .map(|at| numbers.value(at))
    };
    let numbers: UInt32Array = (0..column.len()).map(of_chat).collect();
    let (fields, mut arrays, nulls) = messages.clone().into_parts();
    let mut fields: Vec<Arc<Field>> = fields.iter().cloned().collect();
    for (field, array) in fields.iter_mut().zip(&mut arrays) {
        if field.name() == "content" {
            let data_type = content.data_type().clone();
            *field = Arc::new(field.as_ref().clone().with_data_type(data_type));
            *array = content.clone();
        }
    }
    let messages = StructArray::try_new(Fields::from(fields), arrays, nulls);
    let messages: ArrayRef = Arc::new(messages.map_err(|error| broken(&error))?);
    Ok((relist(column, messages)?, Arc::new(numbers)))
}

/// The lists of `column` over other values.
fn relist(column: &ArrayRef, values: ArrayRef) -> PyResult<ArrayRef> {
    let item = Arc::new(Field::new("item", values.data_type().clone(), true));
    let lists: std::result::Result<ArrayRef, ArrowError> = if let Some(lists) =
        column.as_list_opt::<i32>()
    {
        let (_, offsets, _, nulls) = lists.clone().into_parts();
        ListArray::try_new(item, offsets, values, nulls).map(|lists| Arc::new(lists) as ArrayRef)
    } else {
        let (_, offsets, _, nulls) = column.as_list::<i64>().clone().into_parts();
        LargeListArray::try_new(item, offsets, values, nulls)
            .map(|lists| Arc::new(lists) as ArrayRef)
    };
    lists.map_err(|error| broken(&error))
}

/// Positions kept and content tokens cut of each segment: struct{mask: list<bool>, starts: list<u32>} to two of u32;
/// `starts` is optional.
#[pyfunction]
#[pyo3(signature = (segments, *, ratio = None, length = None, rounding = "ceil", base = None))]
#[allow(clippy::needless_pass_by_value)]
fn truncate_positions(
    py: Python<'_>,
    segments: PyChunkedArray,
    ratio: Option<f64>,
    length: Option<usize>,
    rounding: &str,
    base: Option<PyReadonlyArray1<'_, i64>>,
) -> PyResult<(PyChunkedArray, PyChunkedArray)> {
    let cut = Cut::new(ratio, length, rounding).map_err(to_py)?;
    let base = base.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
    let (chunks, _) = segments.into_inner();
    check_lines(base, chunks.iter().map(Array::len).sum())?;
    let (kept, gone): (Vec<ArrayRef>, Vec<ArrayRef>) = py.detach(|| {
        let mut first = 0;
        let one = |chunk: &ArrayRef| {
            let base = bases(base, first, chunk.len());
            first += chunk.len();
            let shorten =
                |line: usize, content: &[bool]| kept_positions(content, cut, base[line].given());
            let lines = over_contents(chunk, shorten)?;
            let kept = UInt32Array::from_iter_values(lines.iter().map(|line| line.kept as u32));
            let gone = UInt32Array::from_iter_values(lines.iter().map(|line| line.cut as u32));
            Ok((Arc::new(kept) as ArrayRef, Arc::new(gone) as ArrayRef))
        };
        let done = chunks.iter().map(one).collect::<PyResult<Vec<_>>>()?;
        Ok::<_, PyErr>(done.into_iter().unzip())
    })?;
    Ok((
        chunked(kept, DataType::UInt32)?,
        chunked(gone, DataType::UInt32)?,
    ))
}

/// Units kept of lists with the given numbers of units.
#[pyfunction]
#[pyo3(signature = (lengths, *, ratio = None, length = None, rounding = "ceil"))]
#[allow(clippy::needless_pass_by_value)]
fn kept_units<'py>(
    py: Python<'py>,
    lengths: PyReadonlyArray1<'py, u32>,
    ratio: Option<f64>,
    length: Option<usize>,
    rounding: &str,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let cut = Cut::new(ratio, length, rounding).map_err(to_py)?;
    let kept = |&length: &u32| cut.kept(length as usize, length as usize) as u32;
    let kept: Vec<u32> = lengths.as_slice()?.iter().map(kept).collect();
    Ok(kept.into_pyarray(py))
}

/// Content tokens of each segment, and tokens after the last of them: as `truncate_positions` takes them, to two of u32.
#[pyfunction]
fn count_content(
    py: Python<'_>,
    segments: PyChunkedArray,
) -> PyResult<(PyChunkedArray, PyChunkedArray)> {
    let (chunks, _) = segments.into_inner();
    let (counts, tails): (Vec<ArrayRef>, Vec<ArrayRef>) = py.detach(|| {
        let one = |chunk: &ArrayRef| {
            let lines = over_contents(chunk, |_, content| truncate::count_content(content))?;
            let counts = UInt32Array::from_iter_values(lines.iter().map(|line| line.0 as u32));
            let tails = UInt32Array::from_iter_values(lines.iter().map(|line| line.1 as u32));
            Ok((Arc::new(counts) as ArrayRef, Arc::new(tails) as ArrayRef))
        };
        let done = chunks.iter().map(one).collect::<PyResult<Vec<_>>>()?;
        Ok::<_, PyErr>(done.into_iter().unzip())
    })?;
    Ok((
        chunked(counts, DataType::UInt32)?,
        chunked(tails, DataType::UInt32)?,
    ))
}

/// Something of each segment's content: which of its tokens are in the mask and not the template's.
fn over_contents<T>(chunk: &ArrayRef, measure: impl Fn(usize, &[bool]) -> T) -> PyResult<Vec<T>> {
    let broken = |what: &str| PyValueError::new_err(format!("segments need {what}"));
    let segments = chunk
        .as_struct_opt()
        .ok_or_else(|| broken("a struct column"))?;
    let masks = Lists::new("mask", field("mask", segments)?)?;
    let starts = segments
        .column_by_name("starts")
        .map(|column| Lists::new("starts", column))
        .transpose()?;
    let mask = masks
        .values
        .as_boolean_opt()
        .ok_or_else(|| broken("mask of type list<bool>"))?;
    let mut content = Vec::new();
    let mut lines = Vec::with_capacity(chunk.len());
    for line in 0..chunk.len() {
        let range = masks.range(line);
        content.clear();
        content.extend(range.clone().map(|at| mask.is_valid(at) && mask.value(at)));
        if let Some(starts) = &starts {
            let offsets = starts.range(line);
            if offsets.len() != range.len() {
                return Err(broken("mask and starts of equal lengths"));
            }
            for (is, at) in content.iter_mut().zip(offsets) {
                *is &= starts.values.is_valid(at);
            }
        }
        lines.push(measure(line, &content));
    }
    Ok(lines)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(truncate_text, module)?)?;
    module.add_function(wrap_pyfunction!(count_units, module)?)?;
    module.add_function(wrap_pyfunction!(kept_units, module)?)?;
    module.add_function(wrap_pyfunction!(truncate_positions, module)?)?;
    module.add_function(wrap_pyfunction!(count_content, module)?)
}
