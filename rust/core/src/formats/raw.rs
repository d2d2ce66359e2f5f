//! JSON split into the texts of its values, at the speed of a search for quotes.
//!
//! What is accepted here is valid JSON. What is not may be valid too (deep nesting): `serde_json` decides, and says why.

use std::borrow::Cow;

use memchr::memchr2;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// Deeper values are left to `serde_json`.
const MOST_DEPTH: usize = 32;

/// The text of one valid JSON value, without space around it. Half surrogate pairs may stand in its strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raw<'a>(&'a str);

/// An object's keys and values in order, as they stand.
pub type Members<'a> = Vec<(Cow<'a, str>, Raw<'a>)>;

/// A value of a list, with its members if it is an object.
pub type Element<'a> = (Raw<'a>, Option<Members<'a>>);

impl<'a> Raw<'a> {
    pub fn parse(json: &'a str) -> serde_json::Result<Self> {
        let mut scan = Scan { json, at: 0 };
        match scan.space().value(0) {
            Some(value) if scan.space().at == json.len() => Ok(value),
            _ => Ok(Self::of(serde_json::from_str(json)?)),
        }
    }

    pub fn of(raw: &'a RawValue) -> Self {
        Self(raw.get())
    }

    pub fn get(self) -> &'a str {
        self.0
    }

    /// The values of a list; none for anything else.
    pub fn items(self) -> Option<Vec<Raw<'a>>> {
        let mut items = Vec::new();
        let mut scan = Scan {
            json: self.0,
            at: 0,
        };
        let item = |scan: &mut Scan<'a>, depth| {
            items.push(scan.value(depth)?);
            Some(())
        };
        if scan.list(0, item).is_some() {
            return Some(items);
        }
        let items: Vec<&RawValue> = serde_json::from_str(self.0).ok()?;
        Some(items.into_iter().map(Raw::of).collect())
    }

    /// As `items`, in the same pass with the members of the objects, where `serde_json` need not look at any.
    pub fn elements(self) -> Option<Vec<Element<'a>>> {
        let mut elements = Vec::new();
        let mut scan = Scan {
            json: self.0,
            at: 0,
        };
        let element = |scan: &mut Scan<'a>, depth| {
            let start = scan.at;
            let members = if scan.peek() == Some(b'{') {
                let mut found = Vec::new();
                scan.object(depth, |key, value| found.push((key, value)))?;
                Some(found)
            } else {
                scan.value(depth)?;
                None
            };
            elements.push((Raw(&scan.json[start..scan.at]), members));
            Some(())
        };
        if scan.list(0, element).is_some() {
            return Some(elements);
        }
        let items = self.items()?;
        Some(items.into_iter().map(|item| (item, None)).collect())
    }
}

/// The members of the object that is all of `json`; none where `serde_json` must look.
pub fn members(json: &str) -> Option<Members<'_>> {
    let mut found = Vec::new();
    let mut scan = Scan { json, at: 0 };
    scan.space()
        .object(0, |key, value| found.push((key, value)))?;
    (scan.space().at == json.len()).then_some(found)
}

/// A place in a JSON text.
struct Scan<'a> {
    json: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn space(&mut self) -> &mut Self {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\t' | b'\r')) {
            self.at += 1;
        }
        self
    }

    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek() == Some(byte)).then(|| self.at += 1)
    }

    fn value(&mut self, depth: usize) -> Option<Raw<'a>> {
        let start = self.at;
        match self.peek()? {
            b'"' => self.string()?,
            b'{' => self.object(depth, |_, _| ())?,
            b'[' => self.list(depth, |scan, depth| scan.value(depth).map(|_| ()))?,
            _ => self.plain()?,
        }
        Some(Raw(&self.json[start..self.at]))
    }

    /// A number, true, false or null.
    fn plain(&mut self) -> Option<()> {
        let rest = &self.json[self.at..];
        let ends = |byte: u8| matches!(byte, b',' | b']' | b'}' | b' ' | b'\n' | b'\t' | b'\r');
        let length = rest.bytes().position(ends).unwrap_or(rest.len());
        let word = &rest[..length];
        if !matches!(word, "null" | "true" | "false") {
            serde_json::from_str::<IgnoredAny>(word).ok()?;
        }
        self.at += length;
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        self.take(b'"')?;
        loop {
            let rest = &self.json.as_bytes()[self.at..];
            let stop = memchr2(b'"', b'\\', rest)?;
            if rest[..stop]
                .iter()
                .fold(u8::MAX, |least, byte| least.min(*byte))
                < b' '
            {
                return None; // a control character
            }
            if rest[stop] == b'"' {
                self.at += stop + 1;
                return Some(());
            }
            self.at += stop
                + match rest.get(stop + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                    b'u' => {
                        let digits = rest.get(stop + 2..stop + 6)?;
                        digits.iter().all(u8::is_ascii_hexdigit).then_some(6)?
                    }
                    _ => return None,
                };
        }
    }

    fn object(&mut self, depth: usize, mut found: impl FnMut(Cow<'a, str>, Raw<'a>)) -> Option<()> {
        self.take(b'{')?;
        self.space();
        if depth >= MOST_DEPTH || self.take(b'}').is_some() {
            return (depth < MOST_DEPTH).then_some(());
        }
        loop {
            let start = self.space().at + 1;
            self.string()?;
            let key = &self.json[start..self.at - 1];
            let key = if key.contains('\\') {
                Cow::Owned(serde_json::from_str(&self.json[start - 1..self.at]).ok()?)
            } else {
                Cow::Borrowed(key)
            };
            self.space().take(b':')?;
            found(key, self.space().value(depth + 1)?);
            if self.space().take(b'}').is_some() {
                return Some(());
            }
            self.take(b',')?;
        }
    }

    /// A list; `item` goes past a value at a depth.
    fn list(
        &mut self,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize) -> Option<()>,
    ) -> Option<()> {
        self.take(b'[')?;
        self.space();
        if depth >= MOST_DEPTH || self.take(b']').is_some() {
            return (depth < MOST_DEPTH).then_some(());
        }
        loop {
            item(self.space(), depth + 1)?;
            if self.space().take(b']').is_some() {
                return Some(());
            }
            self.take(b',')?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(json: &str) -> Option<Vec<&str>> {
        let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
        Some(items.into_iter().map(RawValue::get).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn lists_and_their_objects_are_those_of_serde_json(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "[", "]", "{", "}", ",", ":", " ", "\n", "\"", "\\", "a", "é", "\"a\"", "\"\\n\\u00e9\"", "\"\\ud800\"",
                    "\\u12", "1", "-0.5e+3", "01", ".5", "true", "nul", "null", "\u{1}", "{\"a\": 1}", "\"\\\\\"", "\u{7f}",
                ]),
                0..12,
            )
        ) {
            let json = format!("[{}]", parts.concat());
            let ours = Raw::parse(&json).ok().map(|raw| raw.items().unwrap_or_default());
            let ours = ours.map(|items| items.into_iter().map(Raw::get).collect::<Vec<_>>());
            prop_assert_eq!(ours, reference(&json));
            let list = Raw::parse(&json).ok();
            let elements = list.and_then(Raw::elements).unwrap_or_default();
            let texts: Vec<_> = elements.iter().map(|(raw, _)| *raw).collect();
            prop_assert_eq!(texts, list.and_then(Raw::items).unwrap_or_default());
            let has_members = elements.iter().any(|(_, found)| found.is_some());
            for (raw, found) in elements {
                let expected = has_members.then(|| members(raw.get())).flatten();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn members_are_split_with_their_keys() {
        let found =
            members(" {\"a\": [1, {\"b\": \"}\"}] , \"\\u00e9\":null}\n").expect("an object");
        let shown: Vec<_> = found
            .iter()
            .map(|(key, value)| (&**key, value.get()))
            .collect();
        assert_eq!(shown, [("a", "[1, {\"b\": \"}\"}]"), ("é", "null")]);
        for broken in [
            "{",
            "{}x",
            "{\"a\" 1}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":01}",
            "[]",
            "",
        ] {
            assert!(members(broken).is_none(), "{broken}");
        }
        assert_eq!(members("{}").map(|found| found.len()), Some(0));
    }

    #[test]
    fn deep_values_are_left_to_serde_json() {
        let deep = "[".repeat(60) + &"]".repeat(60);
        assert_eq!(Raw::parse(&deep).expect("valid").get(), deep);
        assert!(Raw::parse(&"[".repeat(60)).is_err());
    }
}
