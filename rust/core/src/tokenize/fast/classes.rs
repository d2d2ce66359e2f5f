//! Character classes as the regular expressions of `tokenizers` see them, one byte a character.

use std::sync::LazyLock;

use super::table::RUNS;

pub const LETTER: u8 = 1; // \p{L}
pub const NUMBER: u8 = 2; // \p{N}
pub const SPACE: u8 = 4; // \s
pub const MARK: u8 = 8; // \p{M}
pub const UPPER: u8 = 16; // \p{Lu}, \p{Lt}
pub const LOWER: u8 = 32; // \p{Ll}
pub const PUNCTUATION: u8 = 64; // `Punctuation`: an older Unicode, and all of ASCII's
pub const UNSETTLED: u8 = 128; // NFC may change it or what stands beside it

const PAGE: usize = 256;

/// Classes of all characters in pages of 256; equal neighbours share a page.
pub struct Classes {
    pages: Vec<u16>,
    bytes: Vec<[u8; PAGE]>,
}

pub static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::new);

/// Of the first 128 characters, without a look at the pages.
pub const ASCII: [u8; 128] = ascii();

const fn ascii() -> [u8; 128] {
    let mut table = [0; 128];
    let mut at = 0;
    while at < 128 {
        let c = at as u8;
        table[at] = if c.is_ascii_uppercase() {
            LETTER | UPPER
        } else if c.is_ascii_lowercase() {
            LETTER | LOWER
        } else if c.is_ascii_digit() {
            NUMBER
        } else if c == b' ' || (9 <= c && c <= 13) {
            SPACE
        } else if c.is_ascii_punctuation() {
            PUNCTUATION
        } else {
            0
        };
        at += 1;
    }
    table
}

impl Classes {
    fn new() -> Self {
        let mut classes = Self {
            pages: Vec::new(),
            bytes: Vec::new(),
        };
        let (mut run, last) = (0, RUNS.len() - 1);
        for page in 0..0x11_0000 / PAGE {
            let mut bytes = [0; PAGE];
            for (index, byte) in bytes.iter_mut().enumerate() {
                let point = (page * PAGE + index) as u32;
                while run < last && RUNS[run + 1] >> 8 <= point {
                    run += 1;
                }
                *byte = RUNS[run] as u8;
            }
            if classes.bytes.last() != Some(&bytes) {
                classes.bytes.push(bytes);
            }
            classes.pages.push(classes.bytes.len() as u16 - 1);
        }
        classes
    }

    pub fn of(&self, c: char) -> u8 {
        let point = c as usize;
        self.bytes[self.pages[point / PAGE] as usize][point % PAGE]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fmt::Write;

    use tokenizers::utils::SysRegex;
    use unicode_categories::UnicodeCategories;
    use unicode_normalization_alignments::{IsNormalized, char, is_nfc_quick};

    use super::*;

    /// Classes of every character, asked of the regular expressions and tables that `tokenizers` uses.
    fn asked() -> Vec<(char, u8)> {
        let sets = [
            (r"\p{L}", LETTER),
            (r"\p{N}", NUMBER),
            (r"\s", SPACE),
            (r"\p{M}", MARK),
            (r"[\p{Lu}\p{Lt}]", UPPER),
            (r"\p{Ll}", LOWER),
        ];
        let all: String = (0..=0x10_ffff).filter_map(char::from_u32).collect();
        let mut classes = vec![0u8; all.len()];
        for (pattern, bit) in sets {
            for (start, _) in SysRegex::new(pattern).unwrap().find_iter(&all) {
                classes[start] |= bit;
            }
        }
        let extra = |c: char| {
            let quiet = char::canonical_combining_class(c) == 0
                && matches!(is_nfc_quick(std::iter::once(c)), IsNormalized::Yes);
            let punctuation = c.is_ascii_punctuation() || c.is_punctuation();
            (u8::from(punctuation) * PUNCTUATION) | (u8::from(!quiet) * UNSETTLED)
        };
        all.char_indices()
            .map(|(at, c)| (c, classes[at] | extra(c)))
            .collect()
    }

    #[test]
    fn every_character_has_the_class_that_the_regular_expressions_give_it() {
        for (c, class) in asked() {
            assert_eq!(CLASSES.of(c), class, "{c:?}");
            if c.is_ascii() {
                assert_eq!(ASCII[c as usize], class, "{c:?}");
            }
        }
    }

    /// Writes table.rs: `cargo test -p pyprefopt-core write_the_table -- --ignored`.
    #[test]
    #[ignore = "a generator, to run when tokenizers brings a newer Unicode"]
    fn write_the_table() {
        let (mut runs, mut before) = (Vec::new(), None);
        for (c, class) in asked() {
            if before != Some(class) {
                runs.push(u32::from(c) << 8 | u32::from(class));
                before = Some(class);
            }
        }
        let mut text = String::from(
            "//! Runs of characters with the same classes, written by a test of `classes`: first character << 8 | classes.\n\n",
        );
        writeln!(
            text,
            "#[rustfmt::skip]\n#[allow(clippy::unreadable_literal)] // nobody reads them\npub const RUNS: [u32; {}] = [",
            runs.len()
        )
        .unwrap();
        for line in runs.chunks(12) {
            let line: Vec<String> = line.iter().map(|run| format!("0x{run:x}")).collect();
            writeln!(text, "    {},", line.join(", ")).unwrap();
        }
        text.push_str("];\n");
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tokenize/fast/table.rs");
        std::fs::write(file, text).unwrap();
    }
}
