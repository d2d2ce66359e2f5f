//! The elements of a JSON array, one after the other, as JSON lines.

use memchr::memchr3;

use crate::{Error, Result};

/// A scanner that knows strings and brackets and nothing else of JSON: the elements are parsed later, each by itself.
#[derive(Default)]
pub struct Array {
    /// Line breaks so far.
    breaks: u64,
    /// Where the line begins and what has been consumed, in bytes from the file's start.
    line_start: u64,
    consumed: u64,
    expects: Expects,
    /// Inside an element: bytes of it that have been looked at.
    looked: Option<usize>,
    /// The closing brackets that are due, innermost last.
    open: Vec<u8>,
    in_string: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Expects {
    #[default]
    Bracket,
    FirstElement,
    Element,
    Comma,
    Nothing,
}

impl Array {
    /// The line at hand, from 1.
    pub fn line(&self) -> u64 {
        self.breaks + 1
    }

    /// Append the next element to `out` as one line; up to where `pending` is used, and whether there was an element.
    pub fn next_row(
        &mut self,
        pending: &mut [u8],
        from: usize,
        end: bool,
        out: &mut Vec<u8>,
    ) -> Result<Option<(usize, bool)>> {
        let rest = &mut pending[from..];
        if self.looked.is_none() {
            let length = self.between(rest)?;
            if length > 0 {
                self.consumed += length as u64;
                return Ok(Some((from + length, false)));
            }
        }
        let Some(looked) = self.looked else {
            return if end && self.expects != Expects::Nothing {
                Err(self.broken("the text ends before the array does", 0))
            } else {
                Ok(None)
            };
        };
        let Some(length) = self.element(rest, looked)? else {
            return if end {
                Err(self.broken("the text ends inside an element", rest.len()))
            } else {
                Ok(None)
            };
        };
        out.extend_from_slice(&rest[..length]);
        out.push(b'\n');
        self.looked = None;
        self.consumed += length as u64;
        Ok(Some((from + length, true)))
    }

    /// Skip what stands between elements; sets `looked` where an element begins.
    fn between(&mut self, rest: &[u8]) -> Result<usize> {
        for (at, &byte) in rest.iter().enumerate() {
            let next = match (self.expects, byte) {
                (_, b'\n') => {
                    self.breaks += 1;
                    self.line_start = self.consumed + at as u64 + 1;
                    continue;
                }
                (_, b' ' | b'\t' | b'\r') => continue,
                (Expects::Bracket, b'[') => Expects::FirstElement,
                (Expects::FirstElement | Expects::Comma, b']') => Expects::Nothing,
                (Expects::Comma, b',') => Expects::Element,
                (Expects::FirstElement | Expects::Element, b',' | b']' | b'}' | b':') => {
                    return Err(self.broken("an element must stand here", at));
                }
                (Expects::FirstElement | Expects::Element, _) => {
                    self.looked = Some(0);
                    return Ok(at);
                }
                (Expects::Bracket, _) => return Err(self.broken("'[' must stand here", at)),
                (Expects::Comma, _) => return Err(self.broken("',' or ']' must stand here", at)),
                (Expects::Nothing, _) => {
                    return Err(self.broken("nothing may follow the array", at));
                }
            };
            self.expects = next;
        }
        Ok(rest.len())
    }

    /// The element's length, once its end is there. Line breaks in it become blanks (in strings, where JSON allows
    /// none, another control character), so that the element is one line.
    fn element(&mut self, rest: &mut [u8], looked: usize) -> Result<Option<usize>> {
        let mut at = looked;
        while at < rest.len() {
            let ended = if self.in_string {
                self.string(rest, &mut at)
            } else {
                self.token(rest, &mut at)?
            };
            if ended {
                self.expects = Expects::Comma;
                return Ok(Some(at));
            }
            if self.in_string && rest[at..] == *b"\\" {
                break; // the escaped character has not arrived
            }
        }
        self.looked = Some(at);
        Ok(None)
    }

    /// One step inside a string; true at the end of an element that is a string.
    fn string(&mut self, rest: &mut [u8], at: &mut usize) -> bool {
        let Some(found) = memchr3(b'"', b'\\', b'\n', &rest[*at..]) else {
            *at = rest.len();
            return false;
        };
        *at += found;
        match rest[*at] {
            b'"' => {
                self.in_string = false;
                *at += 1;
                self.open.is_empty()
            }
            b'\\' => {
                *at += if *at + 1 < rest.len() { 2 } else { 0 };
                false
            }
            _ => {
                self.line_break(rest, at, b'\r');
                false
            }
        }
    }

    /// One step outside of strings; true at the element's end.
    fn token(&mut self, rest: &mut [u8], at: &mut usize) -> Result<bool> {
        match rest[*at] {
            b'"' => self.in_string = true,
            b'{' => self.open.push(b'}'),
            b'[' => self.open.push(b']'),
            b'\n' if !self.open.is_empty() => {
                self.line_break(rest, at, b' ');
                return Ok(false);
            }
            b',' | b']' | b' ' | b'\t' | b'\r' | b'\n' if self.open.is_empty() => return Ok(true),
            byte @ (b'}' | b']') => {
                if self.open.pop() != Some(byte) {
                    let what = format!("'{}' closes nothing that is open", char::from(byte));
                    return Err(self.broken(&what, *at));
                }
                *at += 1;
                return Ok(self.open.is_empty());
            }
            _ => {}
        }
        *at += 1;
        Ok(false)
    }

    fn line_break(&mut self, rest: &mut [u8], at: &mut usize, stands_in: u8) {
        rest[*at] = stands_in;
        *at += 1;
        self.breaks += 1;
        self.line_start = self.consumed + *at as u64;
    }

    fn broken(&self, what: &str, at: usize) -> Error {
        let column = (self.consumed + at as u64).saturating_sub(self.line_start) + 1;
        Error::Argument(format!(
            "broken JSON array: {what}, line {} column {column}",
            self.line()
        ))
    }
}
