//! Segments of tokens, some of which are content: what is cut is counted in these.

use super::cut::{Cut, Kept};

/// Positions kept of a segment whose content tokens are marked: up to the last one kept, or all where nothing is cut.
/// A ratio is taken of `base`, or of the segment's own content.
///
/// ```
/// # use pyprefopt_core::truncate::{Cut, Kept, kept_positions};
/// let half = Cut::new(Some(0.5), None, "ceil")?;
/// let content = [false, true, true, true, true, false];
/// assert_eq!(kept_positions(&content, half, None), Kept { kept: 3, cut: 2 });
/// assert_eq!(kept_positions(&content, half, Some(2)), Kept { kept: 2, cut: 3 });
/// assert_eq!(kept_positions(&[false, true, false], half, None), Kept { kept: 3, cut: 0 });
/// # Ok::<(), pyprefopt_core::Error>(())
/// ```
pub fn kept_positions(content: &[bool], cut: Cut, base: Option<usize>) -> Kept {
    let length = content.iter().filter(|is| **is).count();
    let kept = cut.kept(length, base.unwrap_or(length));
    let whole = Kept {
        kept: content.len(),
        cut: 0,
    };
    if kept == length {
        return whole;
    }
    let mut marked = content.iter().enumerate().filter(|(_, is)| **is);
    marked.nth(kept - 1).map_or(whole, |(position, _)| Kept {
        kept: position + 1,
        cut: length - kept,
    })
}

/// The content tokens of a segment, and the tokens after the last of them.
///
/// ```
/// # use pyprefopt_core::truncate::count_content;
/// assert_eq!(count_content(&[false, true, true, false]), (2, 1));
/// assert_eq!(count_content(&[false, false]), (0, 2));
/// ```
#[inline]
pub fn count_content(content: &[bool]) -> (usize, usize) {
    let after = content.iter().rev().take_while(|is| !**is).count();
    (content.iter().filter(|is| **is).count(), after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(units: usize) -> Cut {
        Cut::new(None, Some(units), "ceil").expect("valid")
    }

    proptest! {
        /// Cutting by the same length again changes nothing; a base that is the own length is no base.
        #[test]
        fn positions_are_stable(content in prop::collection::vec(any::<bool>(), 0..30), ratio in 0.01f64..=1.0) {
            let cut = Cut::new(Some(ratio), None, "ceil").expect("valid");
            let own = content.iter().filter(|is| **is).count();
            let first = kept_positions(&content, cut, None);
            prop_assert_eq!(first, kept_positions(&content, cut, Some(own)));
            let left = content[..first.kept].iter().filter(|is| **is).count();
            prop_assert_eq!(left + first.cut, own);
            prop_assert_eq!(left, cut.kept(own, own));
            if left > 0 {
                prop_assert_eq!(kept_positions(&content[..first.kept], count(left), None).cut, 0);
            }
        }
    }

    #[test]
    fn a_segment_without_content_stays() {
        let kept = |content: &[bool]| kept_positions(content, count(1), None).kept;
        assert_eq!(kept(&[false, false]), 2);
        assert_eq!(kept(&[]), 0);
    }
}
