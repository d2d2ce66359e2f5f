//! Why a row cannot be used, in the words a user sees.

const SHOWN_CHARS: usize = 80;

/// One bad row; the row's number stands beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Slug, for counting.
    pub reason: &'static str,
    /// Where in the row, as `chosen[1].content`; empty: the row itself.
    pub field: String,
    /// What stands there, shortened.
    pub value: String,
    pub rule: String,
    pub remedy: &'static str,
}

impl Reject {
    /// With `value` shortened.
    pub fn new(
        field: &str,
        value: &str,
        reason: &'static str,
        rule: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        Self {
            reason,
            field: field.to_owned(),
            value: shorten(value),
            rule: rule.into(),
            remedy,
        }
    }
}

/// `text` cut to a length that fits a message.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS - 1) {
        Some((end, last)) if end + last.len_utf8() < text.len() => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_by_characters() {
        assert_eq!(shorten(&"é".repeat(80)), "é".repeat(80));
        assert_eq!(shorten(&"é".repeat(81)), "é".repeat(79) + "…");
    }
}
