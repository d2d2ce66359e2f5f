//! The law by which a ratio of a length becomes a whole number, for cutting and for selecting.

use crate::{Error, Result};

/// How far a product may lie from a whole number, in parts of that number, and still be it.
const TOLERANCE: f64 = 1e-12;

/// What a product of ratio and length becomes that is no whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    HalfUp,
    Floor,
    Ceil,
}

impl Rounding {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "half_up" => Ok(Self::HalfUp),
            "floor" => Ok(Self::Floor),
            "ceil" => Ok(Self::Ceil),
            _ => Err(Error::Argument(format!(
                "rounding must be 'half_up', 'floor' or 'ceil', got '{name}'"
            ))),
        }
    }

    /// `ratio * length` as a whole number, with the ratio as the decimal number that the user wrote: 0.07 of 100 is 7,
    /// though 0.07 · 100 is a little more in binary. `HalfUp` is the floor of the product and one half.
    ///
    /// ```
    /// use pyprefopt_core::rounding::Rounding;
    /// assert_eq!(Rounding::Ceil.share(0.07, 100), 7);
    /// assert_eq!(Rounding::Ceil.share(0.3, 7), 3); // 2.1
    /// assert_eq!(Rounding::Floor.share(0.29, 100), 29);
    /// assert_eq!(Rounding::Floor.share(1.0 / 3.0, 6), 2);
    /// assert_eq!(Rounding::HalfUp.share(0.3, 5), 2); // 1.5
    /// assert_eq!(Rounding::HalfUp.share(0.145, 100), 15); // 14.5
    /// ```
    #[inline]
    pub fn share(self, ratio: f64, length: usize) -> usize {
        let product = ratio * length as f64;
        let exact = match self {
            Self::HalfUp => product + 0.5,
            Self::Floor | Self::Ceil => product,
        };
        let (whole, tolerance) = (exact as usize, TOLERANCE * exact.max(1.0));
        let fraction = exact - whole as f64;
        let up = match self {
            Self::HalfUp | Self::Floor => fraction >= 1.0 - tolerance,
            Self::Ceil => fraction > tolerance,
        };
        whole.saturating_add(usize::from(up))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In whole numbers, which have no binary fractions.
        #[test]
        fn a_ratio_is_the_decimal_that_was_written(thousandths in 1u32..=1000, length in 0u32..100_000) {
            let (ratio, product) = (f64::from(thousandths) / 1000.0, u64::from(thousandths) * u64::from(length));
            let share = |rounding: Rounding| rounding.share(ratio, length as usize) as u64;
            prop_assert_eq!(share(Rounding::Floor), product / 1000);
            prop_assert_eq!(share(Rounding::Ceil), product.div_ceil(1000));
            prop_assert_eq!(share(Rounding::HalfUp), (product + 500) / 1000);
        }

        #[test]
        fn a_share_of_equal_parts_is_whole(parts in 1u32..100, each in 0u32..1000) {
            let (ratio, length) = (1.0 / f64::from(parts), (parts * each) as usize);
            for rounding in [Rounding::HalfUp, Rounding::Floor, Rounding::Ceil] {
                prop_assert_eq!(rounding.share(ratio, length), each as usize);
            }
        }
    }

    #[test]
    fn names() {
        assert_eq!(Rounding::parse("ceil"), Ok(Rounding::Ceil));
        assert!(Rounding::parse("round").is_err());
    }
}
