//! Slices of texts and lists, as Python takes them.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::template::sandbox;

/// `base[start:stop:step]`; what is not there slices to an empty list.
pub fn slice(base: &Value, start: &Value, end: &Value, step: &Value) -> Result<Value, Error> {
    let bound = |value: &Value| -> Result<Option<i64>, Error> {
        if value.is_none() {
            Ok(None)
        } else {
            i64::try_from(value.clone()).map(Some)
        }
    };
    let (start, end, step) = (bound(start)?, bound(end)?, bound(step)?.unwrap_or(1));
    if step == 0 {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "cannot slice by step size of 0",
        ));
    }
    sandbox::look_at_items(base)?;
    match base.kind() {
        ValueKind::String => {
            let text = base.as_str().unwrap_or_default();
            sandbox::allows(text.len())?;
            Ok(Value::from(if step == 1 {
                let places = Places::new(text.chars().count(), start, end, step);
                let rest = text.chars().skip(places.first as usize);
                rest.take(places.count).collect::<String>()
            } else {
                sandbox::allows(text.len().saturating_mul(4))?;
                let chars: Vec<char> = text.chars().collect();
                let places = Places::new(chars.len(), start, end, step);
                places.map(|place| chars[place]).collect()
            }))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = base.try_iter()?.collect();
            let places = Places::new(items.len(), start, end, step);
            Ok(places
                .map(|place| items[place].clone())
                .collect::<Vec<_>>()
                .into())
        }
        ValueKind::Undefined | ValueKind::None => Ok(Value::from(Vec::<Value>::new())),
        kind => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("value of type {kind} cannot be sliced"),
        )),
    }
}

/// The places of a slice, `slice.indices` of Python.
struct Places {
    first: i64,
    step: i64,
    count: usize,
}

impl Places {
    fn new(len: usize, start: Option<i64>, end: Option<i64>, step: i64) -> Self {
        let len = i64::try_from(len).unwrap_or(i64::MAX);
        let (lowest, highest) = if step < 0 { (-1, len - 1) } else { (0, len) };
        let place = |bound: i64| {
            let place = if bound < 0 {
                bound.saturating_add(len)
            } else {
                bound
            };
            place.clamp(lowest, highest)
        };
        let first = start.map_or(if step < 0 { highest } else { lowest }, place);
        let last = end.map_or(if step < 0 { lowest } else { highest }, place);
        let span = if step < 0 { first - last } else { last - first };
        let count = span.max(0).unsigned_abs().div_ceil(step.unsigned_abs()) as usize;
        Self { first, step, count }
    }
}

impl Iterator for Places {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.count = self.count.checked_sub(1)?;
        let place = self.first;
        self.first = self.first.saturating_add(self.step);
        Some(place as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_pythons() {
        let places = |start, end, step| Places::new(5, start, end, step).collect::<Vec<_>>();
        assert_eq!(places(None, None, 1), [0, 1, 2, 3, 4]);
        assert_eq!(places(None, None, -1), [4, 3, 2, 1, 0]);
        assert_eq!(places(Some(-2), None, 1), [3, 4]);
        assert_eq!(places(Some(-9), Some(2), 1), [0, 1]);
        assert_eq!(places(Some(1), Some(9), 2), [1, 3]);
        assert_eq!(places(Some(3), Some(0), -2), [3, 1]);
        assert_eq!(places(Some(3), Some(0), 1), Vec::<usize>::new());
        assert_eq!(places(Some(0), Some(3), -1), Vec::<usize>::new());
        assert_eq!(places(Some(i64::MIN), Some(i64::MAX), i64::MAX), [0]);
        assert_eq!(places(None, None, i64::MIN), [4]);
        assert_eq!(Places::new(0, None, None, -1).count(), 0);
    }
}
