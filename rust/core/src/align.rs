//! Spans of text and the tokens that overlap them; values of one tokenization as another's.

/// True for each token that shares a byte with a span; `None` is a token of the template. Ranges are half open.
///
/// ```
/// # use pyprefopt_core::align::spans_to_mask;
/// let tokens = [None, Some((0, 4)), Some((4, 7)), Some((7, 9))];
/// assert_eq!(spans_to_mask(&[(5, 7)], &tokens), [false, false, true, false]);
/// ```
pub fn spans_to_mask(spans: &[(u32, u32)], tokens: &[Option<(u32, u32)>]) -> Vec<bool> {
    let overlaps = |&(start, end): &(u32, u32)| {
        spans
            .iter()
            .any(|&(from, to)| start.max(from) < end.min(to))
    };
    tokens
        .iter()
        .map(|token| token.as_ref().is_some_and(overlaps))
        .collect()
}

/// A token of a response: its bytes in the content (none: the template's), its message, and whether it takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub span: Option<(u32, u32)>,
    pub turn: u16,
    pub scored: bool,
}

/// Where a token stands: phase (0 before the content, 1 content, 2 behind it), message, bytes. Orders a response.
type Place = (u8, u16, u32, u32);

/// Move values of one tokenization of a response to the tokens of another; the total is kept.
///
/// A value is shared out over the tokens that overlap its bytes, by bytes in common. Tokens of the very same place (the
/// same bytes; or template tokens of the same message on the same side of the content), as many here as there, are
/// matched one to one, so equal tokenizations give equal values. Other template tokens share their place's total evenly.
/// What meets no token goes to the next one, or to the last. Only scored tokens give and take.
///
/// ```
/// # use pyprefopt_core::align::{Token, transfer_values};
/// let token = |span| Token { span, turn: 1, scored: true };
/// let from = [token(Some((0, 4))), token(Some((4, 6))), token(None)];
/// let to = [token(Some((0, 1))), token(Some((1, 6))), token(None)];
/// assert_eq!(transfer_values(&[8.0, 1.0, 0.5], &from, &to), [2.0, 7.0, 0.5]);
/// ```
pub fn transfer_values(values: &[f32], from: &[Token], to: &[Token]) -> Vec<f32> {
    let (sources, targets) = (in_order(from), Targets::new(to));
    let mut moved = vec![0.0; to.len()];
    if targets.order.is_empty() {
        return vec![0.0; to.len()];
    }
    for group in sources.chunk_by(|one, two| one.0 == two.0) {
        let same = targets.at(group[0].0);
        if same.len() == group.len() {
            for (source, target) in group.iter().zip(same) {
                moved[target.1] += f64::from(values[source.1]);
            }
        } else {
            for &(place, index) in group {
                targets.share(f64::from(values[index]), place, &mut moved);
            }
        }
    }
    moved.iter().map(|&value| value as f32).collect()
}

/// Scored tokens by place, with their positions.
fn in_order(tokens: &[Token]) -> Vec<(Place, usize)> {
    let is_content = |token: &Token| token.span.is_some();
    let content = tokens.iter().position(is_content).unwrap_or(usize::MAX);
    let place = |(index, token): (usize, &Token)| match token.span {
        Some((start, end)) => ((1, 0, start, end), index),
        None => (
            (if index < content { 0 } else { 2 }, token.turn, 0, 0),
            index,
        ),
    };
    let scored = |(_, token): &(usize, &Token)| token.scored;
    let mut order: Vec<_> = tokens
        .iter()
        .enumerate()
        .filter(scored)
        .map(place)
        .collect();
    order.sort_unstable();
    order
}

/// The tokens that values move to.
struct Targets {
    order: Vec<(Place, usize)>,
    reach: Vec<u32>, // largest end so far of a content token
}

impl Targets {
    fn new(tokens: &[Token]) -> Self {
        let order = in_order(tokens);
        let furthest = |reach: &mut u32, &((_, _, _, end), _): &(Place, usize)| {
            *reach = end.max(*reach);
            Some(*reach)
        };
        let reach = order.iter().scan(0, furthest).collect();
        Self { order, reach }
    }

    /// The tokens at one place.
    fn at(&self, place: Place) -> &[(Place, usize)] {
        let first = self.order.partition_point(|token| token.0 < place);
        let count = self.order[first..].partition_point(|token| token.0 == place);
        &self.order[first..first + count]
    }

    /// Share `value` of a token at `place` over the tokens that it meets.
    fn share(&self, value: f64, place: Place, moved: &mut [f64]) {
        let met: Vec<(usize, f64)> = if place.0 == 1 {
            self.overlapping(place.2, place.3)
        } else {
            self.at(place).iter().map(|token| (token.1, 1.0)).collect()
        };
        let whole: f64 = met.iter().map(|token| token.1).sum();
        if met.is_empty() {
            let next = self.order.partition_point(|token| token.0 < place);
            moved[self.order[next.min(self.order.len() - 1)].1] += value;
        }
        for (index, part) in met {
            moved[index] += value * part / whole;
        }
    }

    /// Content tokens that have bytes in common with [start, end), and how many.
    fn overlapping(&self, start: u32, end: u32) -> Vec<(usize, f64)> {
        let first = self.order.partition_point(|token| token.0.0 < 1);
        let behind = self.order[first..].partition_point(|token| token.0.0 == 1) + first;
        let near = self.reach[first..behind].partition_point(|&reach| reach <= start) + first;
        self.order[near..behind]
            .iter()
            .take_while(|token| token.0.2 < end)
            .filter_map(|&((_, _, from, to), index)| {
                let (from, to) = (from.max(start), to.min(end));
                (from < to).then(|| (index, f64::from(to - from)))
            })
            .collect()
    }
}
