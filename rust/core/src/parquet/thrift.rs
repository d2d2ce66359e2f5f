//! Thrift's compact protocol, read from bytes that may lie: nothing is made before its bytes are seen.

use crate::{Error, Result};

/// Structs and lists in each other: Thrift's own bound.
const MOST_LEVELS: usize = 64;

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wire {
    Bool,
    Byte,
    Int,
    Double,
    Bytes,
    List,
    Map,
    Struct,
}

impl Wire {
    fn of(code: u8) -> Result<Self> {
        Ok(match code {
            1 | 2 => Self::Bool,
            3 => Self::Byte,
            4..=6 => Self::Int,
            7 => Self::Double,
            8 => Self::Bytes,
            9 | 10 => Self::List, // 10: a set
            11 => Self::Map,
            12 => Self::Struct,
            _ => return Err(lies("its footer has a field of an unknown kind")),
        })
    }
}

pub struct Reader<'a> {
    rest: &'a [u8],
    level: usize,
}

impl<'a> Reader<'a> {
    pub fn new(content: &'a [u8]) -> Self {
        Self {
            rest: content,
            level: 0,
        }
    }

    /// The fields of a struct: `read` takes the value of each.
    pub fn fields(
        &mut self,
        mut read: impl FnMut(&mut Self, i64, Wire) -> Result<()>,
    ) -> Result<()> {
        self.within(|reader| {
            let mut field = 0_i64;
            loop {
                let head = reader.byte()?;
                if head == 0 {
                    return Ok(());
                }
                field = if head >> 4 == 0 {
                    reader.int()?
                } else {
                    field.wrapping_add(i64::from(head >> 4))
                };
                match Wire::of(head & 15)? {
                    Wire::Bool => {} // its value is its kind
                    wire => read(reader, field, wire)?,
                }
            }
        })
    }

    /// A list of structs.
    pub fn structs<T>(&mut self, read: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.list(Wire::Struct, read)
    }

    /// A list of whole numbers.
    pub fn ints(&mut self) -> Result<Vec<i64>> {
        self.list(Wire::Int, Self::int)
    }

    fn list<T>(&mut self, wire: Wire, read: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let (count, code) = self.list_head()?;
        if count > 0 && Wire::of(code)? != wire {
            return Err(lies("its footer has a list of an unknown kind"));
        }
        let mut found = Vec::new();
        for _ in 0..count {
            found.push(read(self)?);
        }
        Ok(found)
    }

    fn list_head(&mut self) -> Result<(u64, u8)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 {
            self.number()?
        } else {
            u64::from(head >> 4)
        };
        Ok((count, head & 15))
    }

    /// A whole number of any width.
    pub fn int(&mut self) -> Result<i64> {
        let number = self.number()?;
        let half = i64::try_from(number >> 1).unwrap_or(i64::MAX);
        Ok(if number & 1 == 0 { half } else { !half })
    }

    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.number()?;
        self.take(length)
    }

    pub fn skip(&mut self, wire: Wire) -> Result<()> {
        match wire {
            Wire::Bool | Wire::Byte => self.take(1).map(drop),
            Wire::Int => self.number().map(drop),
            Wire::Double => self.take(8).map(drop),
            Wire::Bytes => self.bytes().map(drop),
            Wire::Struct => self.fields(|reader, _, wire| reader.skip(wire)),
            Wire::List => {
                let (count, code) = self.list_head()?;
                self.skip_each(count, &[code])
            }
            Wire::Map => match self.number()? {
                0 => Ok(()),
                count => {
                    let codes = self.byte()?;
                    self.skip_each(count, &[codes >> 4, codes & 15])
                }
            },
        }
    }

    fn skip_each(&mut self, count: u64, codes: &[u8]) -> Result<()> {
        self.within(|reader| {
            for _ in 0..count {
                for &code in codes {
                    reader.skip(Wire::of(code)?)?;
                }
            }
            Ok(())
        })
    }

    fn within<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.level == MOST_LEVELS {
            return Err(lies(&format!(
                "its footer is nested deeper than {MOST_LEVELS} levels"
            )));
        }
        self.level += 1;
        let found = read(self);
        self.level -= 1;
        found
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(lies("its footer has a number of more than 64 bits"))
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let (taken, rest) = usize::try_from(length)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length))
            .ok_or_else(|| lies("its footer ends before it is whole"))?;
        self.rest = rest;
        Ok(taken)
    }
}

pub fn lies(message: &str) -> Error {
    Error::Argument(message.to_owned())
}
