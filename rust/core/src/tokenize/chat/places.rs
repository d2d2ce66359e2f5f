//! Where contents stand in a rendered chat.

use minijinja::value::Value;

use super::rendering::Chat;
use crate::template::Place;

/// Stands in for a content, to find its place; no text holds it.
pub const PLACEHOLDER: &str = "\u{f8ff}content\u{f8ff}";

impl Chat<'_> {
    /// Where the content of a message without one would begin: behind its header and what the template puts before it.
    pub(super) fn content_start(&self, chat: &[Value], index: usize, text: &str) -> Option<usize> {
        let mut chat = chat.to_vec();
        chat[index] = with_placeholder(&chat[index], &["tool_calls"])?;
        let other = self.template.render(&chat, false, &self.options).ok()?;
        let (start, _) = other.split_once(PLACEHOLDER)?;
        text.starts_with(start).then_some(start.len())
    }

    /// The content of message `index` in `text[from..]`, as it stands or with its ends stripped.
    pub(super) fn locate(
        &self,
        chat: &[Value],
        index: usize,
        content: &str,
        from: usize,
        text: &str,
        add: bool,
    ) -> Option<Place> {
        if let Some(place) = self.by_placeholder(chat, index, content, from, text, add) {
            return place;
        }
        let tail = &text[from..];
        let lead = content.len() - content.trim_start().len();
        let forms = [
            (content, 0),
            (content.trim_end(), 0),
            (content.trim_start(), lead),
            (content.trim(), lead),
        ];
        let (shown, lead) = forms
            .into_iter()
            .find(|(shown, _)| !shown.is_empty() && tail.contains(shown))?;
        let at = from
            + tail
                .find(shown)
                .filter(|at| tail.rfind(shown) == Some(*at))?;
        Some(Place {
            range: at..at + shown.len(),
            lead,
        })
    }

    #[allow(clippy::option_option)] // not found out, or found not to be shown
    /// The content's place, found by rendering another content in its stead. None where that changes the text around
    /// it; none inside where the template does not show it.
    fn by_placeholder(
        &self,
        chat: &[Value],
        index: usize,
        content: &str,
        from: usize,
        text: &str,
        add: bool,
    ) -> Option<Option<Place>> {
        let replaced = with_placeholder(chat.get(index)?, &[])?;
        let mut chat = chat.to_vec();
        chat[index] = replaced;
        let other = self.template.render(&chat, add, &self.options).ok()?;
        let (start, end) = other.split_once(PLACEHOLDER)?;
        let stop = text
            .len()
            .checked_sub(end.len())
            .filter(|stop| *stop >= start.len())?;
        if start.len() < from || !text.starts_with(start) || !text.ends_with(end) {
            return None;
        }
        let shown = text.get(start.len()..stop)?;
        if shown.is_empty() {
            return Some(None);
        }
        let lead = content.find(shown)?;
        Some(Some(Place {
            range: start.len()..stop,
            lead,
        }))
    }
}

/// The message with another content, without the keys `left_out`.
fn with_placeholder(message: &Value, left_out: &[&str]) -> Option<Value> {
    let kept = |key: &Value| !key.as_str().is_some_and(|key| left_out.contains(&key));
    let replaced = message.try_iter().ok()?.filter(kept).map(|key| {
        let value = match key.as_str() {
            Some("content") => Value::from(PLACEHOLDER),
            _ => message.get_item(&key).unwrap_or_default(),
        };
        (key, value)
    });
    Some(replaced.collect())
}
