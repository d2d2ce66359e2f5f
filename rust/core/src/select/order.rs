//! The order in which tokens are selected: numbers that sort as the scores do, or by chance.

/// What decides: the wanted end of the scores, or chance.
#[derive(Debug, Clone, Copy)]
pub enum Order<'a> {
    /// One score a token, the largest or the smallest first.
    Scores { scores: &'a [f32], largest: bool },
    /// `length` tokens in the random order of a key, see `random_key`.
    Random { key: u64, length: usize },
}

impl Order<'_> {
    #[inline]
    pub(super) fn len(&self) -> usize {
        match *self {
            Self::Scores { scores, .. } => scores.len(),
            Self::Random { length, .. } => length,
        }
    }
}

/// The key of a list's random order: it depends on nothing but these three numbers.
///
/// Token `t` is ordered by the upper 32 bits of `splitmix(key + t)`, ties by position, see `chance`.
pub fn random_key(seed: u64, row: u64, segment: u64) -> u64 {
    splitmix(splitmix(splitmix(seed) ^ row) ^ segment)
}

/// The output function of `SplitMix64` at counter `x` (a bijection that mixes all bits).
#[inline]
fn splitmix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `key`, for the random order of a key.
#[inline]
pub(super) fn chance(seed: u64, index: u32) -> u64 {
    splitmix(seed.wrapping_add(u64::from(index))) >> 32 << 32 | u64::from(index)
}

/// A key whose ascending order is the order of selection: the wanted end of the scores first, then the earlier token.
#[inline]
pub(super) fn key(score: f32, index: u32, largest: bool) -> u64 {
    u64::from(rank(score, largest)) << 32 | u64::from(index)
}

/// A number whose ascending order is that of the scores, from the wanted end.
#[inline]
pub(super) fn rank(score: f32, largest: bool) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0.0 + 0.0 is 0.0
    let negative = 0u32.wrapping_sub(bits >> 31); // all ones below zero
    let ascending = bits ^ (negative | 0x8000_0000);
    if largest { !ascending } else { ascending }
}
