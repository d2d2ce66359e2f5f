//! Taking characters off a text's ends, as Python does.

use std::sync::Arc;

/// What is taken off an end of a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Strip {
    #[default]
    Nothing,
    Spaces,
    Characters(Arc<str>),
}

/// `str.isspace` of one character: Unicode's white space and four separators of ASCII.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `lstrip` and `rstrip` at once.
pub fn strip<'a>(text: &'a str, start: &Strip, end: &Strip) -> &'a str {
    let text = strip_start(text, start);
    match end {
        Strip::Nothing => text,
        Strip::Spaces => text.trim_end_matches(is_space),
        Strip::Characters(set) => text.trim_end_matches(|c| set.contains(c)),
    }
}

/// `lstrip`.
pub fn strip_start<'a>(text: &'a str, start: &Strip) -> &'a str {
    match start {
        Strip::Nothing => text,
        Strip::Spaces => text.trim_start_matches(is_space),
        Strip::Characters(set) => text.trim_start_matches(|c| set.contains(c)),
    }
}
