//! Which tokens of a list may be selected.

use crate::bits::Bits;

/// Token ids that are never selected, as one bit an id.
#[derive(Debug, Clone, Default)]
pub struct Excluded {
    bits: Vec<u64>,
}

impl Excluded {
    /// ```
    /// let excluded = pyprefopt_core::select::Excluded::new(&[3, 70]);
    /// assert!(excluded.contains(70) && !excluded.contains(4) && !excluded.contains(u32::MAX));
    /// ```
    pub fn new(ids: &[u32]) -> Self {
        let words = ids.iter().max().map_or(0, |&id| (id as usize >> 6) + 1);
        let mut bits = vec![0; words];
        for &id in ids {
            bits[id as usize >> 6] |= 1 << (id & 63);
        }
        Self { bits }
    }

    #[inline]
    pub fn contains(&self, id: u32) -> bool {
        self.bits
            .get(id as usize >> 6)
            .is_some_and(|word| word >> (id & 63) & 1 == 1)
    }
}

/// The tokens of a list that may be selected: those in the mask (none given: all) whose id is not excluded.
#[derive(Debug, Clone, Copy, Default)]
pub struct Candidates<'a> {
    pub mask: Option<Bits<'a>>,
    pub ids: Option<(&'a [u32], &'a Excluded)>,
}

impl Candidates<'_> {
    #[inline]
    pub(super) fn has(&self, index: usize) -> bool {
        self.mask.is_none_or(|bits| bits.get(index))
            && self
                .ids
                .is_none_or(|(ids, excluded)| !excluded.contains(ids[index]))
    }

    #[inline]
    pub(super) fn all(&self) -> bool {
        self.mask.is_none() && self.ids.is_none()
    }
}
