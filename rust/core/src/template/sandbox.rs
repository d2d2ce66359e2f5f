//! Bounds on what one rendering may do: instructions, bytes of values and output, values and bytes looked at, depth.

use std::cell::Cell;
use std::thread::LocalKey;

use minijinja::value::{DynObject, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Instructions that one rendering may execute, besides a multiple of its input; a message takes some hundred.
pub const FUEL: u64 = 4_000_000;
/// Bytes of values and output that one rendering may produce, besides a multiple of its input.
const BYTES: usize = 64 << 20;
/// Bytes that one rendering may look at (to compare, sort, search, write), besides a multiple of its input.
const WORK: usize = 96 << 20;
/// Instructions and bytes made per byte of the input.
const PER_INPUT_BYTE: usize = 64;
/// Bytes looked at per byte of the input: some templates look at all messages for each.
const LOOKS_PER_INPUT_BYTE: usize = 256;
/// The input's size from which its multiple matters for instructions.
pub const LARGE: usize = 1 << 14;
/// Cost of a value in a list or mapping, in bytes.
const ELEMENT: usize = 16;
/// Bytes of an engine's value in a list.
pub const VALUE: usize = 24;
/// Cost of a filter or test on an element, in bytes looked at.
const CALL: usize = 256;
/// Bytes of a macro, of which calls hold copies.
const MACRO: usize = 1 << 12;
/// Lists in lists and mappings; a chat with tools has some ten.
pub const DEPTH: usize = 64;
/// Frames (loops, macros) in frames; a macro's call takes six.
pub const FRAMES: usize = 300;
/// Filters in filters (`map('map', …)`) and blocks in blocks.
const NESTED: usize = 16;
/// Characters that a format may pad to.
const WIDEST_FORMAT: usize = 60_000;

/// Filters and methods whose result may be a number of times as long as their text.
const WIDENING: [&str; 6] = ["indent", "center", "ljust", "rjust", "zfill", "wordwrap"];

thread_local! {
    static BYTES_LEFT: Cell<usize> = const { Cell::new(BYTES) };
    static WORK_LEFT: Cell<usize> = const { Cell::new(WORK) };
    static DEPTH_NOW: Cell<usize> = const { Cell::new(0) };
}

/// A rendering of an input of this size begins on this thread.
pub fn begin(input: usize) {
    BYTES_LEFT.set(BYTES.saturating_add(input.saturating_mul(PER_INPUT_BYTE)));
    WORK_LEFT.set(WORK.saturating_add(input.saturating_mul(LOOKS_PER_INPUT_BYTE)));
    DEPTH_NOW.set(0);
}

/// Instructions allowed for an input of this size.
pub fn fuel(input: usize) -> u64 {
    FUEL.saturating_add((input as u64).saturating_mul(PER_INPUT_BYTE as u64))
}

/// What the rendering of no input that began last on this thread has looked at.
#[cfg(test)]
pub fn looked_at() -> usize {
    WORK - WORK_LEFT.get()
}

fn out_of(rule: String) -> Error {
    Error::new(ErrorKind::OutOfFuel, rule)
}

/// Take `bytes` that are made from the rendering's allowance.
pub fn charge(bytes: usize) -> Result<(), Error> {
    take(&BYTES_LEFT, bytes, BYTES, "makes")
}

/// Whether `bytes` more may be made; nothing is taken.
pub fn allows(bytes: usize) -> Result<(), Error> {
    let left = BYTES_LEFT.get();
    let result = charge(bytes);
    BYTES_LEFT.set(left);
    result
}

/// Take `bytes` that are looked at from the rendering's allowance.
pub fn look(bytes: usize) -> Result<(), Error> {
    take(&WORK_LEFT, bytes, WORK, "looks at")
}

/// Take `bytes` from what is left of `most`.
fn take(
    left: &'static LocalKey<Cell<usize>>,
    bytes: usize,
    most: usize,
    does: &str,
) -> Result<(), Error> {
    match left.get().checked_sub(bytes) {
        Some(rest) => {
            left.set(rest);
            Ok(())
        }
        None => Err(out_of(format!(
            "the template {does} more than {} MiB of text and values",
            most >> 20
        ))),
    }
}

pub fn too_deep() -> Error {
    out_of(format!("the template nests values deeper than {DEPTH}"))
}

/// A block or a filter of filters begins.
pub fn enter() -> Result<(), Error> {
    DEPTH_NOW.set(DEPTH_NOW.get() + 1);
    if DEPTH_NOW.get() > NESTED {
        return Err(out_of(format!(
            "the template nests blocks or filters deeper than {NESTED}"
        )));
    }
    Ok(())
}

/// It ends.
pub fn leave() {
    DEPTH_NOW.set(DEPTH_NOW.get().saturating_sub(1));
}

/// Look at a value at every depth: its texts' bytes with a constant for each element.
pub fn measure(value: &Value) -> Result<usize, Error> {
    let mut size = 0usize;
    visit(value, 0, &mut |value, _| {
        let bytes = ELEMENT + value.as_str().map_or(0, str::len);
        size = size.saturating_add(bytes);
        Ok(())
    })?;
    look(size)?;
    Ok(size)
}

/// Look at a value's first level.
pub fn look_at_items(value: &Value) -> Result<usize, Error> {
    let items = match value.as_str() {
        Some(text) => text.len(),
        None => value.len().unwrap_or(0),
    };
    look(items.saturating_mul(ELEMENT).saturating_add(ELEMENT))?;
    Ok(items)
}

/// Look at a text; other values cost nothing.
pub fn look_at_text(value: &Value) -> Result<(), Error> {
    value.as_str().map_or(Ok(()), |text| look(text.len()))
}

/// Look at two values that are compared.
pub fn look_at_both(left: &Value, right: &Value) -> Result<(), Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        return look(left.len().min(right.len()));
    }
    if is_container(left) && is_container(right) {
        measure(left)?;
        measure(right)?;
    }
    Ok(())
}

/// Look at a key that is looked up in a mapping, or at the text that an index counts in.
pub fn look_at_lookup(container: &Value, key: &Value) -> Result<(), Error> {
    look_at_text(container)?;
    if is_container(key) {
        return measure(key).map(|_| ());
    }
    look_at_text(key)
}

pub fn is_container(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
    )
}

/// A filter or test is called on an element.
pub fn call() -> Result<(), Error> {
    look(CALL)
}

/// A macro is made.
pub fn charge_macro() -> Result<(), Error> {
    charge(MACRO)
}

/// Charge for a value that was made: a text by its bytes, lists and mappings by their elements. It may not be too deep,
/// nor may a loop stand in it.
pub fn charge_value(value: &Value) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return charge(text.len());
    }
    charge(VALUE)?;
    if !is_container(value) {
        return Ok(());
    }
    charge(value.len().unwrap_or(0).saturating_mul(VALUE))?;
    let shared = is_namespace(value);
    visit(value, 0, &mut |value, depth| {
        look(ELEMENT)?;
        if depth > 0 && (is_loop(value) || (shared && is_namespace(value))) {
            return Err(no_cycle());
        }
        Ok(())
    })
}

/// Whether a value may be set in a namespace: not what can hold the namespace in turn, since values have no end then.
pub fn check_set(value: &Value) -> Result<(), Error> {
    if !is_container(value) {
        return Ok(());
    }
    visit(value, 0, &mut |value, _| {
        look(ELEMENT)?;
        if is_loop(value) || is_namespace(value) {
            return Err(no_cycle());
        }
        Ok(())
    })
}

fn no_cycle() -> Error {
    out_of("a namespace may not hold a namespace, and no value may hold a loop".into())
}

/// Visit a value and what it holds, at each depth.
fn visit(
    value: &Value,
    depth: usize,
    see: &mut impl FnMut(&Value, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    see(value, depth)?;
    let Some(object) = value.as_object() else {
        return Ok(());
    };
    if depth > DEPTH {
        return Err(too_deep());
    }
    match object.repr() {
        ObjectRepr::Map if is_loop(value) => {}
        ObjectRepr::Map => {
            for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                look_at_text(&key)?; // it was hashed
                visit(&key, depth + 1, see)?;
                visit(&item, depth + 1, see)?;
            }
        }
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            for item in object.try_iter().into_iter().flatten() {
                visit(&item, depth + 1, see)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn is_named(value: &Value, name: &str) -> bool {
    value
        .as_object()
        .is_some_and(|object| object.type_name().ends_with(name))
}

/// The loop that `loop` is: its items change while it runs.
pub fn is_loop(value: &Value) -> bool {
    value.kind() == ValueKind::Map && is_named(value, "::Loop")
}

fn is_namespace(value: &Value) -> bool {
    value.kind() == ValueKind::Map && is_named(value, "::Namespace")
}

/// Refuse a filter or method whose result would not fit, before it is made.
pub fn check_growth(name: &str, args: &[Value]) -> Result<(), Error> {
    let text = args.first().and_then(Value::as_str);
    let size = text.map_or_else(|| args.first().and_then(Value::len).unwrap_or(0), str::len);
    let length = |index: usize| args.get(index).and_then(Value::as_str).map_or(0, str::len);
    match (name, text) {
        ("replace", Some(text)) => {
            let old = args.get(1).and_then(Value::as_str).unwrap_or_default();
            let count = if old.is_empty() {
                text.len() + 1
            } else {
                text.matches(old).count()
            };
            allows(size.saturating_add(count.saturating_mul(length(2))))
        }
        ("join", Some(separator))
            if args
                .get(1)
                .is_some_and(|list| list.kind() != ValueKind::String) =>
        {
            let items = args[1].len().unwrap_or(0);
            allows(items.saturating_mul(separator.len()))
        }
        ("join", _) => allows(size.saturating_mul(length(1))),
        ("split" | "lines" | "splitlines", Some(_)) => allows(size.saturating_mul(VALUE)),
        ("escape" | "e" | "urlencode" | "pprint", _) => allows(size.saturating_mul(6)),
        ("format", Some(text)) => {
            let numbers = args[1..].iter().flat_map(numbers_in);
            let widest = numbers.max().unwrap_or(0).max(widest_format(text));
            if widest > WIDEST_FORMAT {
                return Err(out_of(format!(
                    "a format pads to more than {WIDEST_FORMAT} characters"
                )));
            }
            allows(size.saturating_add(1).saturating_mul(widest))
        }
        ("batch" | "slice", _) => {
            let widest = args[1..].iter().flat_map(numbers_in).max().unwrap_or(0);
            allows(size.saturating_add(widest).saturating_mul(3 * VALUE))
        }
        (name, _) if WIDENING.contains(&name) => {
            let widest = args[1..].iter().flat_map(numbers_in).max().unwrap_or(0);
            allows(size.saturating_add(1).saturating_mul(widest))
        }
        _ => Ok(()),
    }
}

/// The numbers that an argument is, or among the named arguments.
fn numbers_in(value: &Value) -> Vec<usize> {
    let number = |value: &Value| usize::try_from(value.as_i64()?).ok();
    if value.is_kwargs() {
        let object = value.as_object();
        let items = object
            .and_then(DynObject::try_iter_pairs)
            .into_iter()
            .flatten();
        return items.filter_map(|(_, item)| number(&item)).collect();
    }
    number(value).into_iter().collect()
}

/// The largest number in the fields of a format, `{:>8}` or `%8d`.
fn widest_format(text: &str) -> usize {
    let fields = text.split(['{', '%']).skip(1).flat_map(|field| {
        let end = field
            .find(|c: char| c == '}' || c.is_ascii_alphabetic())
            .unwrap_or(field.len());
        field[..end].split(|c: char| !c.is_ascii_digit())
    });
    fields
        .map(|n| n.parse().unwrap_or(usize::from(!n.is_empty()) * usize::MAX))
        .max()
        .unwrap_or(0)
}
