//! Truncation: how much of a response is kept, counted in content tokens or characters.

use crate::{Error, Result};

/// How much of a response is kept: a share of it, or a number of units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    Ratio(f64),
    Count(usize),
}

/// What a share that is no whole number becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    Ceil,
    Floor,
}

/// A truncation: at least one unit is kept, at most what is there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    pub keep: Keep,
    pub rounding: Rounding,
}

impl Cut {
    /// Exactly one of `ratio` (above 0, up to 1) and `count` (from 1 on); `rounding` is `ceil` or `floor`.
    pub fn new(ratio: Option<f64>, count: Option<usize>, rounding: &str) -> Result<Self> {
        let keep = match (ratio, count) {
            (Some(ratio), None) if ratio > 0.0 && ratio <= 1.0 => Keep::Ratio(ratio),
            (Some(ratio), None) => {
                return Err(Error::Argument(format!(
                    "ratio must be above 0 and at most 1, got {ratio}"
                )));
            }
            (None, Some(count)) if count > 0 => Keep::Count(count),
            (None, Some(count)) => {
                return Err(Error::Argument(format!(
                    "tokens must be at least 1, got {count}"
                )));
            }
            _ => {
                return Err(Error::Argument(
                    "truncation needs exactly one of ratio and tokens".into(),
                ));
            }
        };
        let rounding = match rounding {
            "ceil" => Rounding::Ceil,
            "floor" => Rounding::Floor,
            other => {
                return Err(Error::Argument(format!(
                    "rounding must be 'ceil' or 'floor', got '{other}'"
                )));
            }
        };
        Ok(Self { keep, rounding })
    }

    /// Units kept of `length`. A product within 1e-9 of a whole number is that number, since 0.07 · 100 is not 7 in binary.
    ///
    /// ```
    /// # use pyprefopt_core::truncate::Cut;
    /// assert_eq!(Cut::new(Some(0.07), None, "ceil")?.kept(100), 7);
    /// assert_eq!(Cut::new(Some(0.5), None, "ceil")?.kept(5), 3);
    /// assert_eq!(Cut::new(Some(0.1), None, "floor")?.kept(5), 1);
    /// # Ok::<(), pyprefopt_core::Error>(())
    /// ```
    pub fn kept(&self, length: usize) -> usize {
        let wanted = match self.keep {
            Keep::Count(count) => count,
            Keep::Ratio(ratio) => {
                let exact = ratio * length as f64;
                let near = exact.round();
                let whole = (exact - near).abs() <= 1e-9 * near.max(1.0);
                match self.rounding {
                    _ if whole => near as usize,
                    Rounding::Ceil => exact.ceil() as usize,
                    Rounding::Floor => exact.floor() as usize,
                }
            }
        };
        wanted.max(1).min(length)
    }
}

/// Positions kept of a segment whose content tokens are marked: up to the last one kept, or all where nothing is cut.
///
/// ```
/// # use pyprefopt_core::truncate::{Cut, kept_positions};
/// let half = Cut::new(Some(0.5), None, "ceil")?;
/// assert_eq!(kept_positions(&[false, true, true, true, true, false], half), 3);
/// assert_eq!(kept_positions(&[false, true, false], half), 3);
/// # Ok::<(), pyprefopt_core::Error>(())
/// ```
pub fn kept_positions(content: &[bool], cut: Cut) -> usize {
    let length = content.iter().filter(|is| **is).count();
    let kept = cut.kept(length);
    if kept == length {
        return content.len();
    }
    let last = content
        .iter()
        .enumerate()
        .filter(|(_, is)| **is)
        .nth(kept - 1);
    last.map_or(content.len(), |(position, _)| position + 1)
}

/// Bytes kept of a text that is cut by Unicode characters.
pub fn kept_characters(text: &str, cut: Cut) -> usize {
    let kept = cut.kept(text.chars().count());
    text.char_indices()
        .nth(kept)
        .map_or(text.len(), |(byte, _)| byte)
}

/// Bytes kept of a text that is cut by tokens, given their byte offsets: up to the end of the last one kept.
///
/// Tokens that share a character carry its whole range. A character whose tokens are not all kept is dropped, so that the
/// text never has more tokens than asked for; if it is the first character, it is kept whole, so that the text is never empty.
pub fn kept_bytes(text: &str, offsets: &[(u32, u32)], cut: Cut) -> usize {
    let kept = cut.kept(offsets.len());
    if kept == offsets.len() {
        return text.len();
    }
    let end = offsets[kept - 1].1 as usize;
    let next = offsets[kept].0 as usize;
    let mut at = if next < end && next > 0 { next } else { end };
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(tokens: usize) -> Cut {
        Cut::new(None, Some(tokens), "ceil").expect("valid")
    }

    #[test]
    fn a_split_character_is_dropped_unless_it_is_the_first() {
        // "a中": tokens a, and two that share the character
        let offsets = [(0, 1), (1, 4), (1, 4)];
        assert_eq!(kept_bytes("a中", &offsets, count(2)), 1);
        assert_eq!(kept_bytes("a中", &offsets, count(3)), 4);
        assert_eq!(kept_bytes("中文", &[(0, 3), (0, 3), (3, 6)], count(1)), 3);
    }

    #[test]
    fn characters_are_unicode() {
        assert_eq!(kept_characters("中文字", count(2)), 6);
        assert_eq!(kept_characters("", count(2)), 0);
    }

    #[test]
    fn a_segment_without_content_stays() {
        assert_eq!(kept_positions(&[false, false], count(1)), 2);
        assert_eq!(kept_positions(&[], count(1)), 0);
    }

    #[test]
    fn exactly_one_setting() {
        assert!(Cut::new(None, None, "ceil").is_err());
        assert!(Cut::new(Some(0.5), Some(3), "ceil").is_err());
        assert!(Cut::new(Some(1.5), None, "ceil").is_err());
        assert!(Cut::new(Some(f64::NAN), None, "ceil").is_err());
        assert!(Cut::new(None, Some(0), "ceil").is_err());
        assert!(Cut::new(None, Some(1), "round").is_err());
    }
}
