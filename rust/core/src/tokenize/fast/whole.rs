//! Words that are tokens, found without merging: read by all threads, written once.

use super::bpe::QuickMap;
use super::cache::{home, key};

/// Longest word, in bytes, that fits a slot together with its id.
const MOST: usize = 12;
/// Where the id stands in a key of such a word.
const ID: u64 = 0x00ff_ffff_0000_0000;

/// Words by their bytes; short ones in an open table of keys with ids, where one look at the memory is enough.
pub struct Whole {
    short: Vec<[u64; 2]>,
    long: QuickMap<Box<[u8]>, u32>,
}

impl Whole {
    /// Room for `count` words.
    pub fn new(count: usize) -> Self {
        Self {
            short: vec![[0; 2]; (2 * count).next_power_of_two()],
            long: QuickMap::default(),
        }
    }

    /// Ids are below 2²⁴.
    pub fn insert(&mut self, word: &[u8], id: u32) {
        if word.len() > MOST {
            self.long.insert(word.into(), id);
        } else if !word.is_empty() {
            let [low, high] = key(word, 0, word.len());
            let at = self.slot([low, high]);
            self.short[at] = [low, high | u64::from(id) << 32];
        }
    }

    /// The slot of a key, or the empty one where it belongs; no key has a second half of 0.
    #[inline]
    fn slot(&self, [low, high]: [u64; 2]) -> usize {
        let mask = self.short.len() - 1;
        let mut at = home(low, high) & mask;
        loop {
            let slot = self.short[at];
            if slot[1] == 0 || slot[0] == low && slot[1] & !ID == high {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    /// The token that the word of this key is, unless it is `long`.
    #[inline]
    pub fn short(&self, key: [u64; 2]) -> Option<u32> {
        if key[1] & ID != 0 {
            return None;
        }
        let [_, high] = self.short[self.slot(key)];
        (high != 0).then_some(((high & ID) >> 32) as u32)
    }

    /// The token that a longer word is.
    pub fn long(&self, word: &[u8]) -> Option<u32> {
        if word.len() > MOST {
            self.long.get(word).copied()
        } else {
            None
        }
    }
}
