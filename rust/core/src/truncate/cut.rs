//! How much of a response is kept.

use crate::rounding::Rounding;
use crate::{Error, Result};

/// How much of a response is kept: a share of it, or a number of units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    Ratio(f64),
    Count(usize),
}

/// What is left of one response: `kept` tokens or bytes, and how many units went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub kept: usize,
    pub cut: usize,
}

/// A truncation: at least one unit is kept, at most what is there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    pub keep: Keep,
    pub rounding: Rounding,
}

impl Cut {
    /// Exactly one of `ratio` (above 0, up to 1) and `count` (from 1 on).
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
                    "length must be at least 1, got {count}"
                )));
            }
            _ => {
                return Err(Error::Argument(
                    "truncation needs exactly one of ratio and length".into(),
                ));
            }
        };
        Ok(Self {
            keep,
            rounding: Rounding::parse(rounding)?,
        })
    }

    /// Units kept of `length`, a ratio being taken of `base`.
    ///
    /// ```
    /// # use pyprefopt_core::truncate::Cut;
    /// assert_eq!(Cut::new(Some(0.5), None, "ceil")?.kept(5, 5), 3);
    /// assert_eq!(Cut::new(Some(0.1), None, "floor")?.kept(5, 5), 1);
    /// assert_eq!(Cut::new(Some(0.5), None, "ceil")?.kept(9, 4), 2);
    /// # Ok::<(), pyprefopt_core::Error>(())
    /// ```
    pub fn kept(&self, length: usize, base: usize) -> usize {
        let wanted = match self.keep {
            Keep::Count(count) => count,
            Keep::Ratio(ratio) => self.rounding.share(ratio, base),
        };
        wanted.max(1).min(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
