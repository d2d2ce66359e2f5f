//! Where words end: hand-written scanners that cut as the regular expressions of `tokenizer.json` files do.
//!
//! A scanner is asked for the end of the word that begins at a byte; it looks at nothing before it.

use super::classes::{ASCII, CLASSES, LETTER, LOWER, MARK, NUMBER, PUNCTUATION, SPACE, UPPER};

const VISIBLE: u8 = LETTER | NUMBER | SPACE; // all that is none of these goes together

/// Cuts a text, from left to right.
pub trait Scan {
    /// End of the word that begins at `at`, which lies before the end of `text`.
    fn end(&mut self, text: &[u8], at: usize) -> usize;
}

/// The text with the classes of its characters.
#[derive(Clone, Copy)]
struct Text<'a> {
    bytes: &'a [u8],
}

impl<'a> Text<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Classes and length of the character at `at`; none at the end.
    #[inline(always)]
    fn class(self, at: usize) -> Option<(u8, usize)> {
        match ASCII.get(*self.bytes.get(at)? as usize) {
            Some(class) => Some((*class, 1)),
            None => self.wide_class(at),
        }
    }

    #[cold]
    fn wide_class(self, at: usize) -> Option<(u8, usize)> {
        let (c, length) = character(self.bytes, at)?;
        Some((CLASSES.of(c), length))
    }

    fn has(self, at: usize, classes: u8) -> bool {
        self.class(at)
            .is_some_and(|(class, _)| class & classes != 0)
    }

    /// End of the run of characters for which `inside` holds.
    #[inline]
    fn run(self, mut at: usize, inside: impl Fn(u8) -> bool) -> usize {
        while let Some((class, length)) = self.class(at) {
            if !inside(class) {
                break;
            }
            at += length;
        }
        at
    }

    fn is(self, at: usize, wanted: &[u8]) -> bool {
        self.bytes.get(at).is_some_and(|byte| wanted.contains(byte))
    }

    /// End of the run of bytes out of `wanted`.
    fn run_of(self, mut at: usize, wanted: &[u8]) -> usize {
        while self.is(at, wanted) {
            at += 1;
        }
        at
    }

    /// `\s+(?!\S)|\s+`: spaces up to the text's end, or all but the last, or the only one.
    fn spaces(self, at: usize) -> usize {
        let (mut last, mut end) = (at, at);
        while let Some((class, length)) = self.class(end) {
            if class & SPACE == 0 {
                return if last > at { last } else { end };
            }
            last = end;
            end += length;
        }
        end
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`: spaces up to the last line break among them, or as `spaces`.
    fn lines(self, at: usize) -> usize {
        let end = self.run(at, |class| class & SPACE != 0);
        let newline = |byte: &u8| matches!(byte, b'\r' | b'\n');
        match self.bytes[at..end].iter().rposition(newline) {
            Some(last) => at + last + 1,
            None => self.spaces(at),
        }
    }

    /// Bytes of `(?i:'s|'t|'re|'ve|'m|'ll|'d)` at `at`, 0 where it does not match.
    fn contraction(self, at: usize) -> usize {
        let lower = |at: usize| self.bytes.get(at).map_or(0, u8::to_ascii_lowercase);
        if lower(at) != b'\'' {
            return 0;
        }
        match (lower(at + 1), lower(at + 2)) {
            (b's' | b't' | b'm' | b'd', _) => 2,
            (b'r' | b'v', b'e') | (b'l', b'l') | (0xc5, 0xbf) => 3, // the last is ſ, an s in any case
            _ => 0,
        }
    }

    /// `\p{N}{1,most}`
    fn digits(self, mut at: usize, most: usize) -> usize {
        for _ in 0..most {
            match self.class(at) {
                Some((class, length)) if class & NUMBER != 0 => at += length,
                _ => break,
            }
        }
        at
    }
}

/// The character at `at`, where one begins.
#[inline]
pub fn character(bytes: &[u8], at: usize) -> Option<(char, usize)> {
    let first = u32::from(*bytes.get(at)?);
    let next = |more: usize| {
        bytes
            .get(at + more)
            .map_or(0, |byte| u32::from(byte & 0x3f))
    };
    let (point, length) = match first {
        0..0x80 => (first, 1),
        0x80..0xe0 => ((first & 0x1f) << 6 | next(1), 2),
        0xe0..0xf0 => ((first & 0x0f) << 12 | next(1) << 6 | next(2), 3),
        _ => (
            (first & 0x07) << 18 | next(1) << 12 | next(2) << 6 | next(3),
            4,
        ),
    };
    char::from_u32(point).map(|c| (c, length))
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The high bit of each byte in `from..=to`, both ASCII.
#[inline(always)]
fn between(word: u64, from: u8, to: u8) -> u64 {
    let low = word & !HIGH;
    let reached = low + ONES * u64::from(0x80 - from);
    let passed = low + ONES * u64::from(0x7f - to);
    reached & !passed & !word & HIGH
}

/// ASCII letters at the beginning of eight bytes.
#[inline(always)]
fn letters(word: u64) -> usize {
    let others = !between(word | (0x20 * ONES), b'a', b'z') & HIGH;
    others.trailing_zeros() as usize / 8
}

#[inline(always)]
fn eight(text: &[u8], at: usize) -> Option<&[u8; 8]> {
    text.get(at..)?.first_chunk()
}

/// End of a word of ASCII letters at `at`, where it is clear that it ends there; none where a closer look is needed.
#[inline(always)]
fn ascii_word(text: &[u8], at: usize) -> Option<usize> {
    let bytes = eight(text, at)?;
    let run = letters(u64::from_le_bytes(*bytes));
    if run < 8 {
        return (run > 0 && bytes[run] < 128).then_some(at + run);
    }
    let bytes = eight(text, at + 8)?;
    let run = letters(u64::from_le_bytes(*bytes));
    (run < 8 && bytes[run] < 128).then_some(at + 8 + run)
}

/// GPT-2: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
pub struct Gpt2;

impl Scan for Gpt2 {
    #[inline(always)]
    fn end(&mut self, text: &[u8], at: usize) -> usize {
        let lead = usize::from(text[at] == b' ');
        match ascii_word(text, at + lead) {
            Some(end) => end,
            None => Self::slow(Text::new(text), at),
        }
    }
}

impl Gpt2 {
    #[inline(never)]
    fn slow(text: Text, at: usize) -> usize {
        if text.bytes[at] == b'\'' {
            let next = |more: usize| text.bytes.get(at + more).copied().unwrap_or(0);
            match (next(1), next(2)) {
                (b's' | b't' | b'm' | b'd', _) => return at + 2,
                (b'r' | b'v', b'e') | (b'l', b'l') => return at + 3,
                _ => {}
            }
        }
        let begin = at + usize::from(text.bytes[at] == b' ');
        match text.class(begin) {
            Some((class, _)) if class & LETTER != 0 => text.run(begin, |class| class & LETTER != 0),
            Some((class, _)) if class & NUMBER != 0 => text.run(begin, |class| class & NUMBER != 0),
            Some((class, _)) if class & SPACE == 0 => text.run(begin, |class| class & VISIBLE == 0),
            _ => text.spaces(at),
        }
    }
}

/// The pattern of cl100k, Llama 3 and Qwen 2, which differ in the digits that go together:
/// `(?i:'s|…)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
pub struct Cl100k {
    pub digits: usize,
}

impl Scan for Cl100k {
    #[inline(always)]
    fn end(&mut self, text: &[u8], at: usize) -> usize {
        let lead = usize::from(text[at] == b' ');
        match ascii_word(text, at + lead) {
            Some(end) => end,
            None => self.slow(Text::new(text), at),
        }
    }
}

impl Cl100k {
    #[inline(never)]
    fn slow(&self, text: Text, at: usize) -> usize {
        let contraction = text.contraction(at);
        if contraction > 0 {
            return at + contraction;
        }
        let letter = |class: u8| class & LETTER != 0;
        let (class, length) = text.class(at).unwrap_or((0, 1));
        if letter(class) {
            return text.run(at, letter);
        }
        if class & NUMBER != 0 {
            return text.digits(at, self.digits);
        }
        if !text.is(at, b"\r\n") && text.has(at + length, LETTER) {
            return text.run(at + length, letter);
        }
        marks(text, at, b"\r\n").unwrap_or_else(|| text.lines(at))
    }
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n]*`, with `tail` for the set of its end.
fn marks(text: Text, at: usize, tail: &[u8]) -> Option<usize> {
    let begin = at + usize::from(text.bytes[at] == b' ');
    let end = text.run(begin, |class| class & VISIBLE == 0);
    (end > begin).then(|| text.run_of(end, tail))
}

/// The pattern of o200k: words also break where a capital follows a small letter, and keep their contraction.
pub struct O200k;

impl Scan for O200k {
    #[inline(always)]
    fn end(&mut self, text: &[u8], at: usize) -> usize {
        let begin = at + usize::from(text[at] == b' ');
        if let Some(bytes) = eight(text, begin) {
            let word = u64::from_le_bytes(*bytes);
            let begins = usize::from(bytes[0].is_ascii_uppercase());
            let others = !between(word, b'a', b'z') & HIGH & !(0xff * begins as u64);
            let run = others.trailing_zeros() as usize / 8;
            if run > begins && run < 8 && bytes[run] < 128 && bytes[run] != b'\'' {
                return begin + run;
            }
        }
        Self::slow(Text::new(text), at)
    }
}

const CASED: u8 = LETTER | MARK;

impl O200k {
    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
    fn high(class: u8) -> bool {
        class & CASED != 0 && class & LOWER == 0
    }

    /// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
    fn low(class: u8) -> bool {
        class & CASED != 0 && class & UPPER == 0
    }

    /// `[high]*[low]+`: where the capitals end without a small letter, the last of them that is also `low` ends it.
    fn small(text: Text, at: usize) -> Option<usize> {
        let (mut end, mut last) = (at, None);
        while let Some((class, length)) = text.class(end).filter(|(class, _)| Self::high(*class)) {
            end += length;
            if Self::low(class) {
                last = Some(end);
            }
        }
        let run = text.run(end, Self::low);
        if run > end { Some(run) } else { last }
    }

    /// `[high]+[low]*`
    fn capital(text: Text, at: usize) -> Option<usize> {
        let end = text.run(at, Self::high);
        (end > at).then(|| text.run(end, Self::low))
    }

    #[inline(never)]
    fn slow(text: Text, at: usize) -> usize {
        let (class, length) = text.class(at).unwrap_or((0, 1));
        let lead = class & (LETTER | NUMBER) == 0 && !text.is(at, b"\r\n");
        let begins = [Some(at + length).filter(|_| lead), Some(at)];
        let ways: [fn(Text, usize) -> Option<usize>; 2] = [Self::small, Self::capital];
        for way in ways {
            if let Some(end) = begins.iter().flatten().find_map(|&begin| way(text, begin)) {
                return end + text.contraction(end);
            }
        }
        if class & NUMBER != 0 {
            return text.digits(at, 3);
        }
        marks(text, at, b"\r\n/").unwrap_or_else(|| text.lines(at))
    }
}

/// Falcon: punctuation stands apart, then GPT-2's pattern; `pieces` cuts its words at digits.
#[derive(Default)]
pub struct Falcon {
    stop: usize, // end of the run of punctuation, or of what is none
}

impl Scan for Falcon {
    #[inline(always)]
    fn end(&mut self, text: &[u8], at: usize) -> usize {
        if at >= self.stop {
            let text = Text::new(text);
            let mark = text.has(at, PUNCTUATION);
            self.stop = text.run(at, |class| (class & PUNCTUATION != 0) == mark);
        }
        Gpt2.end(&text[..self.stop], at)
    }
}

/// End of the piece at `at` of a word of Falcon's: digits apart, and each three of them. As this is done on bytes that
/// stand as characters, continuation bytes that stand for ², ³, ¹, ¼, ½, ¾ count as digits.
pub fn falcon_piece(word: &[u8], at: usize) -> usize {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | 0xb2 | 0xb3 | 0xb9 | 0xbc..=0xbe);
    let first = digit(word[at]);
    let same = |&byte: &u8| digit(byte) == first;
    let end = at + word[at..].iter().take_while(|byte| same(byte)).count();
    if !first {
        return end;
    }
    let three = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_digit);
    match word[at..end].windows(3).position(three) {
        Some(0) => at + 3,
        Some(next) => at + next,
        None => end,
    }
}
