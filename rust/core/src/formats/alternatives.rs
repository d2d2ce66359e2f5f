//! Fields that stand in for each other: where several are there, they must say the same.

use super::Reject;
use super::json::Fields;
use super::message::Message;
use super::raw::Raw;
use crate::reject::shorten;

/// What the first of the named fields says, and its name; the others that are there say the same. An empty one says
/// nothing where another is filled.
pub fn stated<'a, 'n, T>(
    fields: &Fields<'a>,
    names: &[&'n str],
    read: impl Fn(&'n str, Raw<'a>) -> Result<T, Reject>,
    is_same: impl Fn(&T, &T) -> bool,
) -> Result<Option<(&'n str, T)>, Reject> {
    let given = |name: &&'n str| fields.get(name).map(|raw| (*name, raw));
    let mut found = names.iter().filter_map(given);
    let Some(mut first) = found.next() else {
        return Ok(None);
    };
    let mut others: Vec<(&str, Raw)> = found.collect();
    if !others.is_empty() {
        others.insert(0, first);
        others.retain(|(_, raw)| !is_empty(*raw));
        if !others.is_empty() {
            first = others.remove(0);
        }
    }
    let said = read(first.0, first.1)?;
    for (name, raw) in others {
        if raw.get() != first.1.get() && !is_same(&said, &read(name, raw)?) {
            return Err(contradiction(first.0, name, raw));
        }
    }
    Ok(Some((first.0, said)))
}

pub fn is_empty(raw: Raw) -> bool {
    let words = raw.get().trim_matches('"').trim();
    words.is_empty() || words == "[]" || words == "{}"
}

/// Two fields of one meaning that say two things.
pub fn contradiction(first: &str, other: &str, raw: Raw) -> Reject {
    Reject {
        reason: "fields_differ",
        field: other.to_owned(),
        value: shorten(raw.get()),
        rule: format!("{first} and {other} stand for the same, and must say the same"),
        remedy: "leave one of the two out, or rename it",
    }
}

/// Whether two chats say the same; space around contents tells nothing apart.
pub fn is_alike(chat: &[Message], other: &[Message]) -> bool {
    let alike = |(one, other): (&Message, &Message)| {
        one.role == other.role
            && one.content.trim() == other.content.trim()
            && (one.extra == other.extra || one.said_keys() == other.said_keys())
    };
    chat.len() == other.len() && chat.iter().zip(other).all(alike)
}
