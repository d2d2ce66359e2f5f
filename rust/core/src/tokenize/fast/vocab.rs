//! A byte-level BPE model, ready to split words.

use super::bpe::{Pairs, QuickMap, Scratch};
use super::cache::Words;
use super::file::Model;
use super::whole::Whole;

/// Ids must fit the cache's slots.
const MOST_IDS: usize = 1 << 24;
/// The characters that stand for bytes are below this one.
const LETTERS: usize = 324;
/// A byte without a token: words with it are left to `tokenizers`.
const MISSING: u32 = u32::MAX;

pub struct ByteBpe {
    pairs: Pairs,
    bytes: [u32; 256],
    lengths: Vec<u32>, // bytes of each id's token
    whole: Whole,
    complete: bool, // every byte of UTF-8 has a token
}

/// Whether a text can hold the byte.
fn is_utf8(byte: u8) -> bool {
    !matches!(byte, 0xc0 | 0xc1 | 0xf5..)
}

impl ByteBpe {
    pub fn new(model: &Model) -> Result<Self, String> {
        let letters = letters();
        let (ids, lengths) = ids_of(model, |token| token.chars().count())?;
        let mut bytes = [0; 256];
        for (byte, letter) in letters.iter().enumerate() {
            let mut buffer = [0; 4];
            let id = ids.get(&*letter.encode_utf8(&mut buffer));
            bytes[byte] = id.copied().unwrap_or(MISSING);
        }
        let mut bpe = Self {
            pairs: pairs(model, &ids)?,
            complete: (0..=u8::MAX).all(|byte| bytes[byte as usize] != MISSING || !is_utf8(byte)),
            bytes,
            lengths,
            whole: Whole::new(0),
        };
        bpe.whole = bpe.whole(model, &letters);
        Ok(bpe)
    }

    /// The tokens that a word can be. Those with a character that stands for no byte can be none; and unless the model
    /// says so, a token is found whole only where the merges lead to it, too.
    fn whole(&self, model: &Model, letters: &[char; 256]) -> Whole {
        let merged = !model.ignore_merges.unwrap_or(false);
        let mut values = [None; LETTERS];
        for (letter, byte) in letters.iter().zip(0..=255u8) {
            values[*letter as usize] = Some(byte);
        }
        let mut whole = Whole::new(model.vocab.0.len());
        let (mut word, mut scratch) = (Vec::new(), Scratch::default());
        for (token, id) in &model.vocab.0 {
            word.clear();
            word.extend(token.chars().map_while(|c| *values.get(c as usize)?));
            let all = word.len() == self.length(*id);
            if all && (!merged || self.merge(&word, &mut scratch) && scratch.symbols == [*id]) {
                whole.insert(&word, *id);
            }
        }
        whole
    }

    fn merge(&self, word: &[u8], scratch: &mut Scratch) -> bool {
        scratch.symbols.clear();
        let ids = word.iter().map(|byte| self.bytes[*byte as usize]);
        scratch.symbols.extend(ids);
        if scratch.symbols.contains(&MISSING) {
            return false;
        }
        self.pairs.merge(scratch);
        true
    }

    /// Bytes of a token of the model.
    pub fn length(&self, id: u32) -> usize {
        self.lengths[id as usize] as usize
    }

    pub fn vocab_size(&self) -> usize {
        self.lengths.len()
    }

    pub fn is_complete(&self) -> bool {
        self.complete
    }
}

impl Words for ByteBpe {
    fn split(&self, word: &[u8], scratch: &mut Scratch) -> bool {
        if let Some(id) = self.whole.long(word) {
            scratch.symbols.clear();
            scratch.symbols.push(id);
            return true;
        }
        self.merge(word, scratch)
    }

    #[inline]
    fn token(&self, key: [u64; 2]) -> Option<u32> {
        self.whole.short(key)
    }
}

/// Ids by their tokens, and by id the bytes of text that a token stands for.
pub fn ids_of<'a>(
    model: &'a Model,
    length: impl Fn(&str) -> usize,
) -> Result<(QuickMap<&'a str, u32>, Vec<u32>), String> {
    let vocab = &model.vocab.0;
    let most = vocab
        .iter()
        .map(|(_, id)| *id as usize + 1)
        .max()
        .unwrap_or(0);
    if most >= MOST_IDS {
        return Err(format!("model: an id of {most}"));
    }
    let mut ids: QuickMap<&str, u32> = QuickMap::default();
    ids.reserve(vocab.len());
    let mut lengths = vec![0; most];
    for (token, id) in vocab {
        if ids.insert(token, *id).is_some() || lengths[*id as usize] != 0 {
            return Err(format!(
                "model: the token {token:?} or its id {id} occurs twice"
            ));
        }
        lengths[*id as usize] = length(token) as u32;
    }
    Ok((ids, lengths))
}

/// The merges by the ids of their sides.
pub fn pairs(model: &Model, ids: &QuickMap<&str, u32>) -> Result<Pairs, String> {
    let mut pairs = Pairs::new(model.merges.len());
    let mut joined = String::new();
    for (merge, rank) in model.merges.iter().zip(0..) {
        joined.clear();
        joined.push_str(&merge.0);
        joined.push_str(&merge.1);
        let id = |token: &str| {
            let id = ids.get(token).copied();
            id.ok_or_else(|| format!("model: a merge makes or needs {token:?}, which is no token"))
        };
        pairs.insert(id(&merge.0)?, id(&merge.1)?, rank, id(&joined)?);
    }
    Ok(pairs)
}

/// The visible characters that stand for the bytes: themselves where they are visible, else those from 256 on.
fn letters() -> [char; 256] {
    let mut letters = ['\0'; 256];
    let mut next = 256;
    for (byte, letter) in (0..=255u8).zip(&mut letters) {
        *letter = if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\0')
        };
    }
    letters
}
