//! Reasoning: what a model writes before its answer, in marks that its template knows.

use std::ops::Range;

use memchr::memmem;
use minijinja::value::Value;

use super::rendering::text_of;
use crate::template::MARKS;

pub type Marks = (&'static str, &'static str);

/// A content that begins with reasoning, in bytes of the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    pub marks: Marks,
    pub opened: bool, // the mark that begins it is there
    pub start: usize, // of the mark, or of the reasoning
    pub inner: Range<usize>,
    pub answer: usize,
}

/// The reasoning with which a content begins. `unopened`: also where only its end is marked.
pub fn split(content: &str, unopened: bool) -> Option<Split> {
    let lead = content.len() - content.trim_start().len();
    let opened = |marks: &&Marks| content[lead..].starts_with(marks.0);
    let may_open = matches!(content.as_bytes().get(lead), Some(b'<' | b'['));
    if let Some(&marks) = may_open.then(|| MARKS.iter().find(opened)).flatten() {
        let from = lead + marks.0.len();
        let close = memmem::find(&content.as_bytes()[from..], marks.1.as_bytes());
        let (end, answer) = close.map_or((content.len(), content.len()), |at| {
            (from + at, from + at + marks.1.len())
        });
        return Some(Split {
            marks,
            opened: true,
            start: lead,
            inner: from..end,
            answer,
        });
    }
    if !unopened {
        return None;
    }
    let marks = MARKS[0];
    let end = memmem::find(content.as_bytes(), marks.1.as_bytes())?;
    (!content[..end].contains(marks.0)).then(|| Split {
        marks,
        opened: false,
        start: lead.min(end),
        inner: 0..end,
        answer: end + marks.1.len(),
    })
}

/// Where the first visible character from `at` on stands; `at` where there is none.
pub fn skip_white(text: &str, at: usize) -> usize {
    let behind = text.get(at..).unwrap_or_default();
    at + behind.find(|c: char| !c.is_whitespace()).unwrap_or(0)
}

/// The marks of the reasoning that a text has begun at its end.
pub fn begun(text: &str) -> Option<Marks> {
    let text = text.trim_end();
    MARKS.iter().find(|(open, _)| text.ends_with(open)).copied()
}

/// The marks of reasoning that a template knows.
pub fn known(mentions: &dyn Fn(&str) -> bool) -> Option<Marks> {
    MARKS.iter().find(|(_, close)| mentions(close)).copied()
}

/// Whether an empty line stands between reasoning and answer.
pub fn stands_apart(marks: Marks) -> bool {
    marks == MARKS[0]
}

/// A message's reasoning in a key of its own, as templates read it.
pub fn of_key(message: &Value) -> Option<String> {
    let reasoning = text_of(message, "reasoning_content");
    (!reasoning.trim().is_empty()).then_some(reasoning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_ends_at_the_first_mark() {
        let found = split(" <think>a</think>b</think>c", false).expect("opened");
        assert_eq!((found.start, found.inner, found.answer), (1, 8..9, 17));
        let found = split("a</think>b", true).expect("unopened");
        assert_eq!((found.inner, found.answer), (0..1, 9));
        assert_eq!(split("a</think>b", false), None);
        assert_eq!(split("say <think> or </think>", true), None);
        let endless = split("<think>a", false).expect("opened");
        assert_eq!((endless.inner, endless.answer), (7..8, 8));
    }

    #[test]
    fn the_answer_begins_with_what_is_seen() {
        assert_eq!(skip_white("<think>a</think>\n\n42", 16), 18);
        assert_eq!(skip_white("a", 1), 1);
        assert_eq!(skip_white("a \n", 1), 1);
    }

    #[test]
    fn a_generation_prompt_may_begin_it() {
        assert_eq!(begun("assistant: <think>\n"), Some(MARKS[0]));
        assert_eq!(begun("<think>\n\n</think>\n\n"), None);
    }
}
