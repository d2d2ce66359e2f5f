//! Byte pair encoding of one word: merges from the lowest rank up, the leftmost first among equals.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// A pair that does not merge.
const NONE: u64 = u64::MAX;
/// Longest word, in symbols, whose merges are found by looking at all pairs.
const SCANNED: usize = 128;

/// Merges by their pair: an open table of (pair, rank and new id).
pub struct Pairs {
    slots: Vec<[u64; 2]>,
    shift: u32,
}

impl Pairs {
    pub fn new(count: usize) -> Self {
        let size = (2 * count).next_power_of_two().max(16);
        Self {
            slots: vec![[NONE, NONE]; size],
            shift: 64 - size.trailing_zeros(),
        }
    }

    /// The last merge of a pair counts.
    pub fn insert(&mut self, left: u32, right: u32, rank: u32, id: u32) {
        let key = u64::from(left) << 32 | u64::from(right);
        let at = self.slot(key);
        self.slots[at] = [key, u64::from(rank) << 32 | u64::from(id)];
    }

    #[inline]
    fn slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        while self.slots[at & mask][0] != key && self.slots[at & mask][0] != NONE {
            at += 1;
        }
        at & mask
    }

    /// Rank and new id, or `NONE`.
    #[inline]
    fn get(&self, left: u32, right: u32) -> u64 {
        self.slots[self.slot(u64::from(left) << 32 | u64::from(right))][1]
    }

    /// Merge the symbols of a word in place.
    pub fn merge(&self, scratch: &mut Scratch) {
        if scratch.symbols.len() <= SCANNED {
            self.merge_short(&mut scratch.symbols, &mut scratch.merges);
        } else {
            self.merge_long(&mut scratch.symbols);
        }
    }

    fn merge_short(&self, symbols: &mut Vec<u32>, merges: &mut Vec<u64>) {
        merges.clear();
        merges.extend(symbols.windows(2).map(|pair| self.get(pair[0], pair[1])));
        loop {
            let (mut best, mut at) = (NONE, 0);
            for (index, &merge) in merges.iter().enumerate() {
                if merge < best {
                    (best, at) = (merge, index);
                }
            }
            if best == NONE {
                return;
            }
            symbols[at] = best as u32;
            symbols.remove(at + 1);
            merges.remove(at);
            if at > 0 {
                merges[at - 1] = self.get(symbols[at - 1], symbols[at]);
            }
            if at + 1 < symbols.len() {
                merges[at] = self.get(symbols[at], symbols[at + 1]);
            }
        }
    }

    fn merge_long(&self, symbols: &mut Vec<u32>) {
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
        while let Some(Reverse((_, at, id))) = queue.pop() {
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
    }
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
