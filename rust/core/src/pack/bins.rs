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
    /// This item, the first such one, is larger than the capacity, or negative.
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
/// assert_eq!(best_fit_decreasing(&[4, 3, -1], 10, None), Err(Misfit::Item(2)));
/// ```
pub fn best_fit_decreasing<C: Copy>(
    costs: &[C],
    capacity: usize,
    max_items: Option<usize>,
) -> std::result::Result<Bins, Misfit>
where
    usize: TryFrom<C>,
{
    let (mut largest, mut sum) = (0, 0usize);
    for (item, &cost) in costs.iter().enumerate() {
        let cost = usize::try_from(cost).ok().filter(|&cost| cost <= capacity);
        let cost = cost.ok_or(Misfit::Item(item))?;
        largest = largest.max(cost);
        sum = sum.saturating_add(cost);
    }
    let capacity = capacity.min(sum); // more room than all items take changes nothing
    if capacity > MAX_CAPACITY || u32::try_from(costs.len()).is_err() {
        return Err(Misfit::Capacity);
    }
    let costs = || {
        let checked = |&cost: &C| usize::try_from(cost).unwrap_or(0);
        costs.iter().map(checked)
    };
    let mut counts = vec![0u32; largest + 1];
    costs().for_each(|cost| counts[cost] += 1);
    let limit = max_items.map_or(u32::MAX, |limit| limit.clamp(1, u32::MAX as usize) as u32);
    let (bin_at, sizes) = place(&mut counts, costs().len(), capacity as u32, limit);
    Ok(Bins::collect(costs(), counts, &bin_at, sizes))
}

/// The bin of each item, where items stand by falling cost, and the items of each bin. Items of a cost need no names
/// here: `counts` says how many there are of each, and is made to say where they begin.
fn place(counts: &mut [u32], items: usize, capacity: u32, limit: u32) -> (Vec<u32>, Vec<u32>) {
    let mut rooms = Rooms::new(capacity as usize);
    let (mut bin_at, mut sizes) = (Vec::with_capacity(items), Vec::new());
    for (cost, count) in counts.iter_mut().enumerate().rev() {
        let cost = cost as u32;
        let mut left = std::mem::replace(count, bin_at.len() as u32);
        while left > 0 {
            let (bin, mut room) = rooms.take(cost).unwrap_or_else(|| {
                sizes.push(0);
                (sizes.len() as u32 - 1, capacity)
            });
            let size = &mut sizes[bin as usize];
            // With less room the bin is still the one with the least that suffices: it goes on until it is full.
            while left > 0 && room >= cost && *size < limit {
                bin_at.push(bin);
                *size += 1;
                left -= 1;
                room -= cost;
            }
            if *size < limit {
                rooms.put(bin, room);
            }
        }
    }
    (bin_at, sizes)
}

impl Bins {
    /// `bin_at` as `place` gives it, `next` where the items of each cost begin in it.
    fn collect(
        costs: impl Iterator<Item = usize>,
        mut next: Vec<u32>,
        bin_at: &[u32],
        sizes: Vec<u32>,
    ) -> Self {
        let (mut offsets, mut ends, mut end) = (vec![0], sizes, 0);
        offsets.reserve_exact(ends.len());
        for size in &mut ends {
            (*size, end) = (end, end + *size);
            offsets.push(i64::from(end));
        }
        let mut items = vec![0; bin_at.len()];
        for (item, cost) in (0..).zip(costs) {
            let at = &mut next[cost];
            let end = &mut ends[bin_at[*at as usize] as usize];
            items[*end as usize] = item;
            *at += 1;
            *end += 1;
        }
        Self { offsets, items }
    }

    /// Deal items that cost nothing out to the bins, one after another; a bin is opened where there is none. Items
    /// in a bin stay in ascending order.
    ///
    /// ```
    /// use pyprefopt_core::pack::Bins;
    /// let bins = Bins { offsets: vec![0, 2, 3], items: vec![1, 4, 3] };
    /// let dealt = bins.deal(&[0, 2, 5]);
    /// assert_eq!((dealt.offsets, dealt.items), (vec![0, 4, 6], vec![0, 1, 4, 5, 2, 3]));
    /// ```
    #[must_use]
    pub fn deal(self, free: &[i64]) -> Self {
        if free.is_empty() {
            return self;
        }
        let mut bins: Vec<Vec<i64>> = self.iter().map(<[i64]>::to_vec).collect();
        if bins.is_empty() {
            bins.push(Vec::new());
        }
        let count = bins.len();
        for (at, &item) in free.iter().enumerate() {
            bins[at % count].push(item);
        }
        let (mut offsets, mut items) = (vec![0], Vec::new());
        for mut bin in bins {
            bin.sort_unstable();
            items.append(&mut bin);
            offsets.push(items.len() as i64);
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

    fn put(&mut self, bin: u32, room: u32) {
        let (at, room) = (bin as usize, room as usize);
        if self.below.len() <= at {
            self.below.resize(at + 1, NONE);
        }
        self.below[at] = std::mem::replace(&mut self.top[room], bin);
        self.words[room / 64] |= 1 << (room % 64);
        self.summary[room / 4096] |= 1 << (room / 64 % 64);
    }

    /// Take out the bin with the least room of at least `cost`, with its room.
    fn take(&mut self, cost: u32) -> Option<(u32, u32)> {
        let room = self.least(cost as usize)?;
        let bin = self.top[room];
        self.top[room] = self.below[bin as usize];
        if self.top[room] == NONE {
            self.words[room / 64] &= !(1 << (room % 64));
            if self.words[room / 64] == 0 {
                self.summary[room / 4096] &= !(1 << (room / 64 % 64));
            }
        }
        Some((bin, room as u32))
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
