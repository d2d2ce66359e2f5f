//! Spans of text and the tokens that overlap them.

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
