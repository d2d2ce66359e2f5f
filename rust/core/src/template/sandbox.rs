//! Bounds on what one rendering may do: instructions, bytes of values and output, depth of values.

use std::cell::Cell;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Instructions that one rendering may execute; a long chat takes some hundred thousand.
pub const FUEL: u64 = 20_000_000;
/// Bytes of values and output that one rendering may produce, besides a multiple of its input.
const BYTES: usize = 64 << 20;
const BYTES_PER_INPUT_BYTE: usize = 64;
/// Cost of a value in a list or mapping, in bytes.
const ELEMENT: usize = 16;
/// Lists in lists and mappings; a chat with tools has some ten.
pub const DEPTH: usize = 64;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(BYTES) };
}

/// A rendering begins on this thread.
pub fn begin(input_bytes: usize) {
    LEFT.set(BYTES.saturating_add(input_bytes.saturating_mul(BYTES_PER_INPUT_BYTE)));
}

/// Take `bytes` from the rendering's allowance.
pub fn charge(bytes: usize) -> Result<(), Error> {
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => Err(Error::new(
            ErrorKind::OutOfFuel,
            format!(
                "the template makes more than {} MiB of text and values",
                BYTES >> 20
            ),
        )),
    }
}

/// Whether `bytes` more would be allowed; nothing is taken.
pub fn allows(bytes: usize) -> Result<(), Error> {
    let left = LEFT.get();
    let result = charge(bytes);
    LEFT.set(left);
    result
}

pub fn too_deep() -> Error {
    Error::new(
        ErrorKind::OutOfFuel,
        format!("the template nests values deeper than {DEPTH}"),
    )
}

/// Charge for a value: a text by its bytes, lists and mappings by their elements at every depth.
pub fn charge_value(value: &Value) -> Result<(), Error> {
    charge_nested(value, 0)
}

fn charge_nested(value: &Value, depth: usize) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return charge(if depth == 0 { text.len() } else { ELEMENT });
    }
    charge(ELEMENT)?;
    if !matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
    ) {
        return Ok(());
    }
    if depth > DEPTH {
        return Err(too_deep());
    }
    if value.kind() == ValueKind::Map {
        for key in value.try_iter()? {
            charge_nested(&value.get_item(&key)?, depth + 1)?;
        }
    } else {
        for item in value.try_iter()? {
            charge_nested(&item, depth + 1)?;
        }
    }
    Ok(())
}
