//! What the footer of a Parquet file says of its row groups.
//!
//! Read here, as other readers end the process where numbers of a footer contradict each other.

mod thrift;

use std::borrow::Cow;

use crate::{Error, Result};
use thrift::{Reader, Wire, lies};

/// Levels of columns in each other: other readers take no more.
const MOST_LEVELS: usize = 100;
const BYTE_ARRAY: i64 = 6;
const DELTA_BYTE_ARRAY: i64 = 7;
const REPEATED: i64 = 2;

/// Some rows that are stored together.
#[derive(Debug, Default, PartialEq)]
pub struct RowGroup {
    pub rows: i64,
    /// Of all its pages, unpacked.
    pub bytes: i64,
    /// One for each column without columns of its own.
    pub chunks: Vec<Chunk>,
}

/// The values of one leaf in one row group.
#[derive(Debug, PartialEq)]
pub struct Chunk {
    /// Also those that are null.
    pub values: i64,
    /// Of its pages, unpacked.
    pub bytes: i64,
    /// And as they are stored.
    pub packed: i64,
    /// The number of the way in which they are.
    pub codec: i64,
    /// A value may be spelled by what it shares with the one before.
    pub is_delta: bool,
    /// Where its first page begins.
    pub first_page: i64,
}

/// A column without columns of its own.
#[derive(Debug, PartialEq)]
pub struct Leaf {
    /// The names on the way to it.
    pub path: Vec<String>,
    /// A row may have several values of it.
    pub in_lists: bool,
    /// Its values are texts or bytes of any length.
    pub is_text: bool,
    /// Bytes of a value, where all have as many.
    pub width: i64,
}

#[derive(Debug, PartialEq)]
pub struct Footer {
    pub leaves: Vec<Leaf>,
    pub row_groups: Vec<RowGroup>,
}

impl Footer {
    /// Work and memory stay in proportion to the bytes, whatever they say.
    pub fn read(content: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(content);
        let (mut elements, mut row_groups) = (None, None);
        reader.fields(|reader, field, wire| match (field, wire) {
            (2, Wire::List) => reader
                .structs(Element::read)
                .map(|read| elements = Some(read)),
            (4, Wire::List) => reader
                .structs(RowGroup::read)
                .map(|read| row_groups = Some(read)),
            _ => reader.skip(wire),
        })?;
        let leaves = leaves(&elements.ok_or_else(|| lacks("the columns"))?)?;
        let row_groups = row_groups.ok_or_else(|| lacks("the row groups"))?;
        match row_groups
            .iter()
            .position(|group| group.chunks.len() != leaves.len())
        {
            Some(number) => Err(lies(&format!(
                "its footer has {} columns, and {} in row group {number}",
                leaves.len(),
                row_groups[number].chunks.len()
            ))),
            None => Ok(Self { leaves, row_groups }),
        }
    }
}

/// A column of the schema, in the order in which a walk down the tree meets them.
#[derive(Default)]
struct Element<'a> {
    name: Cow<'a, str>,
    kind: Option<i64>,
    width: i64,
    is_repeated: bool,
    children: i64,
}

impl<'a> Element<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let mut element = Self::default();
        reader.fields(|reader, field, wire| {
            match (field, wire) {
                (1, Wire::Int) => element.kind = Some(reader.int()?),
                (2, Wire::Int) => element.width = reader.int()?,
                (3, Wire::Int) => element.is_repeated = reader.int()? == REPEATED,
                (4, Wire::Bytes) => element.name = String::from_utf8_lossy(reader.bytes()?),
                (5, Wire::Int) => element.children = reader.int()?,
                _ => reader.skip(wire)?,
            }
            Ok(())
        })?;
        Ok(element)
    }
}

/// The first element is the root, which stands in no path.
fn leaves(elements: &[Element]) -> Result<Vec<Leaf>> {
    let (root, columns) = elements.split_first().ok_or_else(|| lacks("the columns"))?;
    let (mut leaves, mut names) = (Vec::new(), Vec::<&Element>::new());
    let mut open = vec![root.children.max(0)];
    for element in columns {
        while open.last() == Some(&0) {
            open.pop();
            names.pop();
        }
        *open
            .last_mut()
            .ok_or_else(|| lies("its footer has more columns than its levels"))? -= 1;
        if element.children > 0 {
            if open.len() > MOST_LEVELS {
                return Err(lies(&format!(
                    "its columns stand more than {MOST_LEVELS} levels deep"
                )));
            }
            names.push(element);
            open.push(element.children);
        } else {
            let path = || names.iter().copied().chain([element]);
            leaves.push(Leaf {
                path: path().map(|part| part.name.to_string()).collect(),
                in_lists: path().any(|part| part.is_repeated),
                is_text: element.kind == Some(BYTE_ARRAY),
                width: element.width,
            });
        }
    }
    if open.iter().all(|&rest| rest == 0) {
        Ok(leaves)
    } else {
        Err(lies("its footer has fewer columns than its levels"))
    }
}

impl RowGroup {
    fn read(reader: &mut Reader) -> Result<Self> {
        let mut group = Self::default();
        reader.fields(|reader, field, wire| {
            match (field, wire) {
                (1, Wire::List) => group.chunks = reader.structs(Chunk::read)?,
                (2, Wire::Int) => group.bytes = reader.int()?,
                (3, Wire::Int) => group.rows = reader.int()?,
                _ => reader.skip(wire)?,
            }
            Ok(())
        })?;
        Ok(group)
    }
}

impl Chunk {
    fn read(reader: &mut Reader) -> Result<Self> {
        let mut chunk = None;
        reader.fields(|reader, field, wire| match (field, wire) {
            (3, Wire::Struct) => Self::read_inner(reader).map(|read| chunk = Some(read)),
            _ => reader.skip(wire),
        })?;
        chunk.ok_or_else(|| lacks("what it must of a column (is it encrypted?)"))
    }

    fn read_inner(reader: &mut Reader) -> Result<Self> {
        let (mut is_delta, mut numbers) = (false, [None; 12]);
        reader.fields(|reader, field, wire| {
            match (field, wire) {
                (2, Wire::List) => is_delta = reader.ints()?.contains(&DELTA_BYTE_ARRAY),
                (4..=7 | 9 | 11, Wire::Int) => numbers[field as usize] = Some(reader.int()?),
                _ => reader.skip(wire)?,
            }
            Ok(())
        })?;
        let [.., codec, values, bytes, packed, _, data, _, dictionary] = numbers;
        let missing = || lacks("the values, the bytes or the pages of a column");
        let data = data.ok_or_else(missing)?;
        Ok(Self {
            values: values.ok_or_else(missing)?,
            bytes: bytes.ok_or_else(missing)?,
            packed: packed.ok_or_else(missing)?,
            codec: codec.ok_or_else(missing)?,
            is_delta,
            first_page: dictionary
                .filter(|&place| 0 < place && place < data)
                .unwrap_or(data),
        })
    }
}

fn lacks(what: &str) -> Error {
    lies(&format!("its footer lacks {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A number of fewer than 64, as it is written.
    const fn int(number: u8) -> u8 {
        number << 1
    }

    /// Two columns in a struct and one beside it, in one row group.
    fn footer() -> Vec<u8> {
        let element = |name: u8, kind: Option<u8>, children: u8| {
            let kind = kind.map_or(vec![0x48], |kind| vec![0x15, int(kind), 0x38]);
            let mut written = [kind, vec![1, name]].concat();
            if children > 0 {
                written.extend([0x15, int(children)]);
            }
            [written, vec![0]].concat()
        };
        let chunk = |encoding: u8, dictionary: Option<u8>| {
            let numbers = [
                int(1),
                0x16,
                int(9),
                0x16,
                int(40),
                0x16,
                int(30),
                0x26,
                int(20),
            ];
            let head = [&[0x3c, 0x29, 0x15, int(encoding), 0x25][..], &numbers].concat();
            let dictionary = dictionary.map_or(vec![], |place| vec![0x26, int(place)]);
            [&head[..], &dictionary, &[0, 0]].concat()
        };
        let elements = [
            element(b'r', None, 2),
            element(b'a', None, 2),
            element(b'x', Some(6), 0),
            element(b'y', Some(1), 0),
            element(b'b', Some(6), 0),
        ];
        let chunks = [chunk(7, None), chunk(0, Some(4)), chunk(0, Some(30))].concat();
        let group = [
            &[0x19, 0x3c][..],
            &chunks,
            &[0x16, int(50), 0x16, int(3), 0],
        ]
        .concat();
        let elements = elements.concat();
        [
            &[0x15, 2, 0x19, 0x5c][..],
            &elements,
            &[0x16, int(3), 0x19, 0x1c],
            &group,
            &[0],
        ]
        .concat()
    }

    #[test]
    fn columns_and_row_groups_are_read() {
        let footer = Footer::read(&footer()).expect("a sound footer");
        let leaf = |path: &[&str], is_text| Leaf {
            path: path.iter().map(ToString::to_string).collect(),
            is_text,
            in_lists: false,
            width: 0,
        };
        assert_eq!(
            footer.leaves,
            [
                leaf(&["a", "x"], true),
                leaf(&["a", "y"], false),
                leaf(&["b"], true)
            ]
        );
        let chunk = |is_delta, first_page| Chunk {
            values: 9,
            bytes: 40,
            packed: 30,
            codec: 1,
            is_delta,
            first_page,
        };
        assert_eq!(
            footer.row_groups,
            [RowGroup {
                rows: 3,
                bytes: 50,
                chunks: vec![chunk(true, 20), chunk(false, 4), chunk(false, 20)]
            }]
        );
    }

    #[test]
    fn every_cut_is_an_error() {
        let whole = footer();
        for end in 0..whole.len() {
            assert!(Footer::read(&whole[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn levels_are_bounded() {
        let level = [0x48, 1, b'a', 0x15, int(1), 0];
        for (levels, what) in [
            (100, "row groups"),
            (101, "levels deep"),
            (100_000, "levels deep"),
        ] {
            let mut content = vec![0x29, 0xfc];
            let mut count = levels + 2;
            while count > 0x7f {
                content.push(count as u8 | 0x80);
                count >>= 7;
            }
            content.push(count as u8);
            content.extend(level.repeat(levels + 1));
            content.extend([0x15, int(6), 0x38, 1, b'x', 0, 0]);
            let error = Footer::read(&content)
                .expect_err("no sound footer")
                .to_string();
            assert!(error.contains(what), "{levels}: {error}");
        }
        assert!(Footer::read(&vec![0x1c; 1_000_000]).is_err()); // structs in each other
    }

    proptest! {
        #[test]
        fn nothing_panics(change in 0usize..400, byte: u8, mut content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Footer::read(&content);
            let mut whole = footer();
            let place = change % whole.len();
            whole[place] = byte;
            let _ = Footer::read(&whole);
            whole.truncate(place);
            whole.append(&mut content);
            let _ = Footer::read(&whole);
        }
    }
}
