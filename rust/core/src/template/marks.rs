//! What begins and ends reasoning in a content.

/// A pair of marks; the first is what most models write.
pub const MARKS: [(&str, &str); 8] = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
];

/// Whether a token is a mark, or begins one.
pub fn is_mark(token: &str) -> bool {
    let begins = |(open, close): &(&str, &str)| open.starts_with(token) || *close == token;
    MARKS.iter().any(begins)
}
