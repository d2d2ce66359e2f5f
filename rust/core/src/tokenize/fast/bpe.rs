//! Byte pair encoding of one word: merges from the lowest rank up, the leftmost first among equals.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// A pair that does not merge.
const NONE: u64 = u64::MAX;
/// Longest word, in symbols, whose merges are found by looking at all pairs: the bits of a word.
const SCANNED: usize = 64;

/// Bits of the filter for each slot, as a power of two.
const FINER: u32 = 2;

/// Merges by their pair: an open table of (pair, rank and new id). Many pairs that are asked for do not merge, which the
/// filter tells of most of them: it has a bit for each hash, and is small enough to stay near the processor.
pub struct Pairs {
    slots: Vec<[u64; 2]>,
    filter: Vec<u64>,
    shift: u32,
}

impl Pairs {
    pub fn new(count: usize) -> Self {
        let size = (2 * count).next_power_of_two().max(64);
        Self {
            slots: vec![[NONE, NONE]; size],
            filter: vec![0; (size << FINER) / 64],
            shift: 64 - size.trailing_zeros(),
        }
    }

    /// The last merge of a pair counts.
    pub fn insert(&mut self, left: u32, right: u32, rank: u32, id: u32) {
        let key = u64::from(left) << 32 | u64::from(right);
        let hash = hash(key);
        let bit = hash >> (self.shift - FINER);
        self.filter[bit as usize / 64] |= 1 << (bit % 64);
        let at = self.slot(key, hash);
        self.slots[at] = [key, u64::from(rank) << 32 | u64::from(id)];
    }

    #[inline]
    fn slot(&self, key: u64, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (hash >> self.shift) as usize;
        while self.slots[at & mask][0] != key && self.slots[at & mask][0] != NONE {
            at += 1;
        }
        at & mask
    }

    /// Rank and new id, or `NONE`.
    #[inline]
    fn get(&self, left: u32, right: u32) -> u64 {
        let key = u64::from(left) << 32 | u64::from(right);
        let hash = hash(key);
        let bit = hash >> (self.shift - FINER);
        if self.filter[bit as usize / 64] >> (bit % 64) & 1 == 0 {
            return NONE;
        }
        self.slots[self.slot(key, hash)][1]
    }

    /// Merge the symbols of a word in place.
    pub fn merge(&self, scratch: &mut Scratch) {
        if scratch.symbols.len() <= SCANNED {
            self.merge_short(&mut scratch.symbols, &mut scratch.merges);
        } else {
            let _looks = self.merge_long(&mut scratch.symbols);
        }
    }

    /// Symbols stay where they are; `live` has a bit for each that begins a part of the word.
    fn merge_short(&self, symbols: &mut Vec<u32>, merges: &mut Vec<u64>) {
        merges.clear();
        merges.extend(symbols.windows(2).map(|pair| self.get(pair[0], pair[1])));
        let none = (SCANNED - symbols.len()) as u32;
        let mut live = u64::MAX.checked_shr(none).unwrap_or(0);
        loop {
            let (mut best, mut at) = (NONE, 0);
            for (index, &merge) in merges.iter().enumerate() {
                (best, at) = if merge < best {
                    (merge, index)
                } else {
                    (best, at)
                };
            }
            if best == NONE {
                break;
            }
            let behind = live & u64::MAX << at << 1;
            let gone = behind.trailing_zeros() as usize;
            live &= !(1 << gone);
            symbols[at] = best as u32;
            if let Some(merge) = merges.get_mut(gone) {
                *merge = NONE;
            }
            let next = (behind & (behind - 1)).trailing_zeros() as usize;
            merges[at] = match symbols.get(next) {
                Some(&right) => self.get(symbols[at], right),
                None => NONE,
            };
            let before = live & !(u64::MAX << at);
            if before != 0 {
                let left = before.ilog2() as usize;
                merges[left] = self.get(symbols[left], symbols[at]);
            }
        }
        let mut count = 0;
        while live != 0 {
            symbols[count] = symbols[live.trailing_zeros() as usize];
            live &= live - 1;
            count += 1;
        }
        symbols.truncate(count);
    }

    /// The number of merges that were looked at: each makes the word shorter, or was offered by one that did.
    fn merge_long(&self, symbols: &mut Vec<u32>) -> usize {
        const GONE: u32 = u32::MAX;
        let count = symbols.len() as u32;
        let mut before: Vec<u32> = (0..count).map(|at| at.wrapping_sub(1)).collect();
        let mut after: Vec<u32> = (1..=count).collect();
        let offer = |at: u32, left: u32, right: u32| {
            let merge = self.get(left, right);
            (merge != NONE).then_some(Reverse((merge >> 32, at, merge as u32)))
        };
        let pairs = symbols.windows(2).zip(0..);
        let mut queue: BinaryHeap<_> = pairs
            .filter_map(|(pair, at)| offer(at, pair[0], pair[1]))
            .collect();
        let mut looks = 0;
        while let Some(Reverse((_, at, id))) = queue.pop() {
            looks += 1;
            let (here, next) = (at as usize, after[at as usize]);
            if symbols[here] == GONE || next == count {
                continue;
            }
            if self.get(symbols[here], symbols[next as usize]) as u32 != id {
                continue; // one of the two has merged since
            }
            symbols[here] = id;
            symbols[next as usize] = GONE;
            let behind = after[next as usize];
            after[here] = behind;
            if behind < count {
                before[behind as usize] = at;
                queue.extend(offer(at, id, symbols[behind as usize]));
            }
            if before[here] < count {
                let left = before[here];
                queue.extend(offer(left, symbols[left as usize], id));
            }
        }
        symbols.retain(|&symbol| symbol != GONE);
        looks
    }
}

#[inline]
fn hash(key: u64) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Buffers of the merging, reused from word to word.
#[derive(Default)]
pub struct Scratch {
    pub symbols: Vec<u32>,
    merges: Vec<u64>,
}

/// A quick hash of short byte strings, not proof against an attacker: the keys are a vocabulary.
#[derive(Default)]
pub struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }
    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

pub type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<Quick>>;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_word_of_a_million_letters_takes_work_in_proportion() {
        let mut pairs = Pairs::new(20);
        (0..20).for_each(|rank| pairs.insert(rank, rank, rank, rank + 1)); // doubles, and doubles of doubles
        for count in [1 << 10, 1 << 20] {
            let mut word = vec![0; count];
            let looks = pairs.merge_long(&mut word);
            assert!(looks <= 3 * count, "{looks}");
            assert_eq!(word.len(), (count >> 20).max(1));
        }
    }

    proptest! {
        /// Symbols 0 to 3, and one for each merge of two that were there before.
        #[test]
        fn short_and_long_words_merge_as_one_pair_after_another_does(
            made in prop::collection::vec((0usize..40, 0usize..40), 0..40), word in prop::collection::vec(0u32..4, 0..=SCANNED),
        ) {
            let mut pairs = Pairs::new(made.len());
            let mut ranks: Vec<((u32, u32), u32)> = Vec::new();
            for (rank, &(left, right)) in made.iter().enumerate() {
                let known = 4 + rank;
                let pair = ((left % known) as u32, (right % known) as u32);
                pairs.insert(pair.0, pair.1, rank as u32, known as u32);
                ranks.retain(|(other, _)| *other != pair);
                ranks.push((pair, known as u32));
            }
            let mut slow = word.clone();
            let find = |slow: &[u32], pair| slow.windows(2).position(|two| (two[0], two[1]) == pair);
            while let Some((at, id)) = ranks.iter().find_map(|&(pair, id)| Some((find(&slow, pair)?, id))) {
                slow.splice(at..at + 2, [id]);
            }
            let mut long = word.clone();
            let looks = pairs.merge_long(&mut long);
            prop_assert!(looks <= 3 * word.len());
            let mut short = Scratch { symbols: word, merges: Vec::new() };
            pairs.merge(&mut short);
            prop_assert_eq!(&short.symbols, &slow);
            prop_assert_eq!(&long, &slow);
        }
    }
}
