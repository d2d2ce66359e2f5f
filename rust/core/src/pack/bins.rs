//! Which items share a bin.
#![allow(clippy::cast_possible_wrap)] // item numbers are far below 2^63

/// Bin `b` holds `items[offsets[b]..offsets[b + 1]]`; two flat arrays, since a million small ones are slow to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bins {
    pub offsets: Vec<i64>,
    pub items: Vec<i64>,
}

/// The largest capacity: what is kept for each room, 8 bytes, must fit in memory.
pub const MAX_CAPACITY: usize = 1 << 26;

/// Why items cannot be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    /// This item, the first such one, is larger than the capacity.
    Item(usize),
    /// Capacity and items together are larger than [`MAX_CAPACITY`], or there are 2³² items or more.
    Capacity,
}

/// Put items into bins of `capacity` by best-fit decreasing: items by falling cost (ties: the earlier first), each
/// into the bin with the least room that suffices (ties: the bin that came to this room last), else a new one.
///
/// Bins are in the order in which they were opened, items in a bin in ascending order. `max_items` bounds the items
/// of a bin.
///
/// ```
/// use pyprefopt_core::pack::{best_fit_decreasing, Misfit};
/// let bins = best_fit_decreasing(&[4, 7, 3, 5], 10, None).unwrap();
/// assert_eq!((bins.offsets, bins.items), (vec![0, 2, 4], vec![1, 2, 0, 3]));
/// assert_eq!(best_fit_decreasing(&[4, 11], 10, None), Err(Misfit::Item(1)));
/// ```
pub fn best_fit_decreasing(
    costs: &[usize],
    capacity: usize,
    max_items: Option<usize>,
) -> std::result::Result<Bins, Misfit> {
    if let Some(item) = costs.iter().position(|&cost| cost > capacity) {
        return Err(Misfit::Item(item));
    }
    // More room than all items take changes nothing.
    let capacity = capacity.min(costs.iter().fold(0, |sum, &cost| sum.saturating_add(cost)));
    if capacity > MAX_CAPACITY || u32::try_from(costs.len()).is_err() {
        return Err(Misfit::Capacity);
    }
    let mut rooms = Rooms::new(capacity);
    let mut bin_of = vec![0u32; costs.len()];
    let mut sizes: Vec<u32> = Vec::new();
    for item in by_falling_cost(costs) {
        let cost = costs[item as usize];
        let (bin, room) = rooms.take(cost).unwrap_or_else(|| {
            sizes.push(0);
            (sizes.len() - 1, capacity)
        });
        bin_of[item as usize] = bin as u32;
        sizes[bin] += 1;
        if max_items.is_none_or(|limit| (sizes[bin] as usize) < limit) {
            rooms.put(bin, room - cost);
        }
    }
    Ok(Bins::collect(&bin_of, &sizes))
}

impl Bins {
    fn collect(bin_of: &[u32], sizes: &[u32]) -> Self {
        let mut offsets = vec![0];
        offsets.extend(sizes.iter().scan(0, |end, &size| {
            *end += i64::from(size);
            Some(*end)
        }));
        let mut next = offsets.clone();
        let mut items = vec![0; bin_of.len()];
        for (item, &bin) in bin_of.iter().enumerate() {
            let place = &mut next[bin as usize];
            items[*place as usize] = item as i64;
            *place += 1;
        }
        Self { offsets, items }
    }

    /// The items of each bin.
    pub fn iter(&self) -> impl Iterator<Item = &[i64]> {
        self.offsets
            .windows(2)
            .map(|ends| &self.items[ends[0] as usize..ends[1] as usize])
    }
}

/// Item indices by falling cost, ties in order: a counting sort.
fn by_falling_cost(costs: &[usize]) -> Vec<u32> {
    let largest = costs.iter().copied().max().unwrap_or(0);
    let mut next = vec![0u32; largest + 2];
    for &cost in costs {
        next[largest - cost + 1] += 1;
    }
    for i in 1..next.len() {
        next[i] += next[i - 1];
    }
    let mut order = vec![0; costs.len()];
    for (item, &cost) in (0..).zip(costs) {
        let place = &mut next[largest - cost];
        order[*place as usize] = item;
        *place += 1;
    }
    order
}

const NONE: u32 = u32::MAX;

/// Open bins by the room that is left: a stack of bins for each room, and a two-level bitset of the rooms that occur.
struct Rooms {
    words: Vec<u64>,
    summary: Vec<u64>, // bit w: words[w] is not zero
    top: Vec<u32>,     // [room] the bin that came to this room last
    below: Vec<u32>,   // [bin] the bin under it on the stack
}

impl Rooms {
    fn new(capacity: usize) -> Self {
        let words = capacity / 64 + 1;
        Self {
            words: vec![0; words],
            summary: vec![0; words / 64 + 1],
            top: vec![NONE; capacity + 1],
            below: Vec::new(),
        }
    }

    fn put(&mut self, bin: usize, room: usize) {
        if self.below.len() <= bin {
            self.below.resize(bin + 1, NONE);
        }
        self.below[bin] = std::mem::replace(&mut self.top[room], bin as u32);
        self.words[room / 64] |= 1 << (room % 64);
        self.summary[room / 4096] |= 1 << (room / 64 % 64);
    }

    /// Take out the bin with the least room of at least `cost`, with its room.
    fn take(&mut self, cost: usize) -> Option<(usize, usize)> {
        let room = self.least(cost)?;
        let bin = self.top[room] as usize;
        self.top[room] = self.below[bin];
        if self.top[room] == NONE {
            self.words[room / 64] &= !(1 << (room % 64));
            if self.words[room / 64] == 0 {
                self.summary[room / 4096] &= !(1 << (room / 64 % 64));
            }
        }
        Some((bin, room))
    }

    fn least(&self, cost: usize) -> Option<usize> {
        let word = cost / 64;
        let here = *self.words.get(word)? & (u64::MAX << (cost % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        let next = first_bit(&self.summary, word + 1)?;
        Some(next * 64 + self.words[next].trailing_zeros() as usize)
    }
}

/// The first set bit from `start` on.
fn first_bit(words: &[u64], start: usize) -> Option<usize> {
    let head = *words.get(start / 64)? & (u64::MAX << (start % 64));
    if head != 0 {
        return Some(start / 64 * 64 + head.trailing_zeros() as usize);
    }
    let offset = words[start / 64 + 1..].iter().position(|&word| word != 0)?;
    let word = start / 64 + 1 + offset;
    Some(word * 64 + words[word].trailing_zeros() as usize)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Best-fit decreasing by looking at every bin; among equal rooms the bin that was filled last.
    fn slow(costs: &[usize], capacity: usize, limit: usize) -> Vec<Vec<i64>> {
        let mut order: Vec<usize> = (0..costs.len()).collect();
        order.sort_by_key(|&item| std::cmp::Reverse(costs[item]));
        let mut bins: Vec<(Vec<usize>, usize, usize)> = Vec::new(); // items, room, time of the last change
        for (time, item) in order.into_iter().enumerate() {
            let fits = bins
                .iter_mut()
                .filter(|(items, room, _)| *room >= costs[item] && items.len() < limit);
            match fits.min_by_key(|(_, room, changed)| (*room, std::cmp::Reverse(*changed))) {
                Some(bin) => {
                    *bin = {
                        bin.0.push(item);
                        (std::mem::take(&mut bin.0), bin.1 - costs[item], time)
                    }
                }
                None => bins.push((vec![item], capacity - costs[item], time)),
            }
        }
        bins.into_iter()
            .map(|(mut items, ..)| {
                items.sort_unstable();
                items.into_iter().map(|item| item as i64).collect()
            })
            .collect()
    }

    proptest! {
        #[test]
        fn bins_agree_with_a_search_over_all_bins(
            costs in prop::collection::vec(0usize..300, 0..80), extra in 0usize..9000, limit in 1usize..10, limited: bool,
        ) {
            let capacity = costs.iter().copied().max().unwrap_or(0) + extra;
            let limit = limited.then_some(limit);
            let bins = best_fit_decreasing(&costs, capacity, limit).unwrap();
            prop_assert_eq!(bins.iter().map(<[i64]>::to_vec).collect::<Vec<_>>(), slow(&costs, capacity, limit.unwrap_or(usize::MAX)));
        }
    }
}
