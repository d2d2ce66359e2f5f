//! Words that were seen before, with their ids: a known word costs one look-up. One cache a thread, of bounded size.

use super::bpe::Scratch;

/// Longest word, in bytes, whose key fits the table.
const SHORT: usize = 15;
/// Longest word that is kept at all.
const KEPT: usize = 256;
/// Slots of the table of short words, 32 bytes each.
const SLOTS: usize = 1 << 17;
/// Slots of the table of longer words, 24 bytes each.
const LONG_SLOTS: usize = 1 << 14;
/// Slots in which a word may stand.
const WAYS: usize = 4;
/// Ids that fit a slot.
const INLINE: usize = 4;
/// Mark of a slot whose ids stand in the pool: start and count.
const POOLED: u64 = 15;
/// Ids and bytes that are kept aside; beyond them the cache is emptied.
const POOL: usize = 1 << 20;

/// What makes ids of a word.
pub trait Words {
    /// Ids of the whole of `word` into `scratch.symbols`; false where only the reference knows them.
    fn split(&self, word: &[u8], scratch: &mut Scratch) -> bool;

    /// The one id of a word of this key, where that is known without a look at its bytes.
    fn token(&self, _key: [u64; 2]) -> Option<u32> {
        None
    }
}

pub struct Cache {
    short: Vec<[u64; 4]>, // key and length, ids
    long: Vec<[u64; 3]>,  // hash, place of the bytes, place of the ids
    ids: Vec<u32>,
    bytes: Vec<u8>,
    scratch: Scratch,
    turn: usize,
    unknown: bool, // a word came by that only the reference knows
}

/// Ids as they are written: a buffer with room at its end.
pub struct Out<'a> {
    buffer: &'a mut Vec<u32>,
    length: usize,
}

impl<'a> Out<'a> {
    pub fn new(buffer: &'a mut Vec<u32>) -> Self {
        let length = buffer.len();
        Self { buffer, length }
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn from(&self, start: usize) -> &[u32] {
        &self.buffer[start..self.length]
    }

    pub fn finish(self) {
        self.buffer.truncate(self.length);
    }

    pub fn push(&mut self, id: u32) {
        self.extend(&[id]);
    }

    pub fn extend(&mut self, ids: &[u32]) {
        self.reserve(ids.len());
        self.buffer[self.length..][..ids.len()].copy_from_slice(ids);
        self.length += ids.len();
    }

    /// `count` of four ids: all are written, so that there is nothing to decide.
    #[inline(always)]
    fn extend_four(&mut self, ids: [u32; INLINE], count: usize) {
        if self.buffer.len() < self.length + INLINE {
            self.reserve(INLINE);
        }
        self.buffer[self.length..][..INLINE].copy_from_slice(&ids);
        self.length += count;
    }

    #[cold]
    fn reserve(&mut self, more: usize) {
        let room = self.length + more;
        if self.buffer.len() < room {
            self.buffer.resize((room + 256).max(room * 5 / 4), 0);
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            short: vec![[0; 4]; SLOTS],
            long: vec![[0; 3]; LONG_SLOTS],
            ids: Vec::new(),
            bytes: Vec::new(),
            scratch: Scratch::default(),
            turn: 0,
            unknown: false,
        }
    }
}

impl Cache {
    /// Whether there was a word that only the reference knows, since this was last asked.
    pub fn take_unknown(&mut self) -> bool {
        std::mem::take(&mut self.unknown)
    }

    /// Ids of the word `text[start..end]`, which is not empty.
    #[inline(always)]
    pub fn encode(
        &mut self,
        words: &impl Words,
        text: &[u8],
        start: usize,
        end: usize,
        out: &mut Out,
    ) {
        let length = end - start;
        if length > SHORT {
            return self.encode_long(words, &text[start..end], out);
        }
        let [low, high] = key(text, start, length);
        let home = home(low, high);
        for way in 0..WAYS {
            let slot = &self.short[(home ^ way) % SLOTS];
            if slot[0] == low && slot[1] == high {
                let count = slot[3] >> 60;
                if count == POOLED {
                    let (at, count) = (slot[2] as u32 as usize, (slot[2] >> 32) as usize);
                    return out.extend(&self.ids[at..at + count]);
                }
                let ids = [
                    slot[2] as u32,
                    (slot[2] >> 32) as u32,
                    slot[3] as u32,
                    (slot[3] >> 32) as u32 & 0x0fff_ffff,
                ];
                return out.extend_four(ids, count as usize);
            }
            if slot[1] == 0 {
                break; // a word stands in the first of its slots that was free
            }
        }
        self.learn(words, &text[start..end], [low, high], out);
    }

    #[inline(never)]
    fn learn(&mut self, words: &impl Words, word: &[u8], key: [u64; 2], out: &mut Out) {
        if let Some(id) = words.token(key) {
            out.push(id);
            return self.keep(key, [u64::from(id), 1 << 60]);
        }
        if !words.split(word, &mut self.scratch) {
            self.unknown = true;
            return;
        }
        let count = self.scratch.symbols.len();
        out.extend(&self.scratch.symbols);
        let ids = if count <= INLINE {
            let id = |at: usize| u64::from(self.scratch.symbols.get(at).copied().unwrap_or(0));
            [
                id(0) | id(1) << 32,
                id(2) | id(3) << 32 | (count as u64) << 60,
            ]
        } else {
            self.make_room(count);
            let at = self.ids.len();
            self.ids.extend_from_slice(&self.scratch.symbols);
            [at as u64 | (count as u64) << 32, POOLED << 60]
        };
        self.keep(key, ids);
    }

    /// Write a slot, in the place of another one where all are taken.
    fn keep(&mut self, [low, high]: [u64; 2], [first, second]: [u64; 2]) {
        let home = home(low, high);
        let free = (0..WAYS).find(|way| self.short[(home ^ way) % SLOTS][1] == 0);
        self.turn = self.turn.wrapping_add(1);
        let way = free.unwrap_or(self.turn % WAYS);
        self.short[(home ^ way) % SLOTS] = [low, high, first, second];
    }

    #[inline(never)]
    fn encode_long(&mut self, words: &impl Words, word: &[u8], out: &mut Out) {
        if word.len() > KEPT {
            self.unknown |= !words.split(word, &mut self.scratch);
            return out.extend(&self.scratch.symbols);
        }
        let hash = hash(word);
        let at = hash as usize % LONG_SLOTS;
        let [known, bytes, ids] = self.long[at];
        if known == hash && self.bytes[bytes as u32 as usize..][..(bytes >> 32) as usize] == *word {
            return out.extend(&self.ids[ids as u32 as usize..][..(ids >> 32) as usize]);
        }
        if !words.split(word, &mut self.scratch) {
            self.unknown = true;
            return;
        }
        let count = self.scratch.symbols.len();
        out.extend(&self.scratch.symbols);
        self.make_room(count.max(word.len()));
        self.long[at] = [
            hash,
            self.bytes.len() as u64 | (word.len() as u64) << 32,
            self.ids.len() as u64 | (count as u64) << 32,
        ];
        self.bytes.extend_from_slice(word);
        self.ids.extend_from_slice(&self.scratch.symbols);
    }

    /// Empty the cache where the pools are full.
    fn make_room(&mut self, more: usize) {
        if self.ids.len().max(self.bytes.len()) + more > POOL {
            self.ids.clear();
            self.bytes.clear();
            self.long.fill([0; 3]);
            self.short.fill([0; 4]);
        }
    }
}

/// Up to 15 bytes and their number.
#[inline(always)]
pub fn key(text: &[u8], start: usize, length: usize) -> [u64; 2] {
    let wide = if let Some(window) = text[start..].first_chunk::<16>() {
        u128::from_le_bytes(*window)
    } else {
        let mut window = [0; 16];
        window[..length].copy_from_slice(&text[start..start + length]);
        u128::from_le_bytes(window)
    };
    let [low, high] = MASKS[length % 16];
    [
        wide as u64 & low,
        (wide >> 64) as u64 & high | (length as u64) << 56,
    ]
}

const MASKS: [[u64; 2]; 16] = masks();

const fn masks() -> [[u64; 2]; 16] {
    let mut masks = [[0; 2]; 16];
    let mut length = 0;
    while length < 16 {
        let mask = (1u128 << (8 * length)) - 1;
        masks[length] = [mask as u64, (mask >> 64) as u64];
        length += 1;
    }
    masks
}

#[inline(always)]
pub fn home(low: u64, high: u64) -> usize {
    let mixed = u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(high ^ 0xc2b2_ae3d_27d4_eb4f);
    (mixed as u64 ^ (mixed >> 64) as u64) as usize
}

/// Never 0, which marks an empty slot.
fn hash(word: &[u8]) -> u64 {
    let mut state = word.len() as u64;
    for part in word.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        let mixed = u128::from(state ^ u64::from_le_bytes(bytes)) * 0x9e37_79b9_7f4a_7c15;
        state = (mixed as u64 ^ (mixed >> 64) as u64).wrapping_add(0xc2b2_ae3d_27d4_eb4f);
    }
    state | 1
}
