//! Which tokens of a list may be selected, and the view of a bitmap that masks arrive in.

/// A part of an Arrow bitmap (least significant bit first).
///
/// ```
/// use pyprefopt_core::select::Bits;
/// let bits = Bits::new(&[0b0000_1010], 1, 3);
/// assert_eq!((bits.get(0), bits.get(1), bits.get(2)), (true, false, true));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Bits<'a> {
    bytes: &'a [u8],
    offset: usize,
    len: usize,
}

impl<'a> Bits<'a> {
    /// `len` bits of `bytes`, from bit `offset` on.
    pub fn new(bytes: &'a [u8], offset: usize, len: usize) -> Self {
        debug_assert!(offset + len <= bytes.len() * 8);
        Self { bytes, offset, len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bit `index`, which must be below `len`.
    #[inline]
    pub fn get(&self, index: usize) -> bool {
        let at = self.offset + index;
        self.bytes[at >> 3] >> (at & 7) & 1 == 1
    }
}

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
