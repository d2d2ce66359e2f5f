//! The view of a bitmap that masks arrive in.

/// A part of an Arrow bitmap (least significant bit first).
///
/// ```
/// use pyprefopt_core::bits::Bits;
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
