//! A prompt beside chats that hold it: whether the two agree, and where the prompt ends in a chat.

use std::borrow::Cow;

use super::Reject;
use super::fields::{is_system, with_system};
use super::message::Message;
use crate::reject::shorten;

/// Whether the chat begins with the user or the system, so that it is whole, and no answer to a prompt beside it.
pub fn is_whole(chat: &[Message]) -> bool {
    chat.first()
        .is_some_and(|first| !matches!(first.role, "assistant" | "tool"))
}

/// Let a whole chat agree with the prompt that the row names beside it; where the prompt ends in the chat.
///
/// The chat must begin with the prompt, or have the prompt, one user turn, as its last user turn. A system message may
/// stand in either of the two; it is then the chat's too. Space around contents tells nothing apart.
pub fn agree<'a>(
    prompt: &[Message<'a>],
    chat: &mut Vec<Message<'a>>,
    (field, side): (&str, &str),
) -> Result<usize, Reject> {
    let lead = leading_systems(prompt);
    match lead {
        [system] => with_system(chat, system)?,
        [] => {}
        several => {
            if leading_systems(chat).is_empty() {
                chat.splice(0..0, several.iter().cloned());
            } else if !begins_with(leading_systems(chat), several) {
                return Err(contradiction(prompt, field, side));
            }
        }
    }
    let turns = &prompt[lead.len()..];
    let before = leading_systems(chat).len();
    split_last_turn(turns, before, chat);
    let held = &chat[before..];
    if held.len() > turns.len() && begins_with(held, turns) {
        return Ok(before + turns.len());
    }
    let last_user = held.iter().rposition(|message| message.role == "user");
    match (turns, last_user) {
        ([turn], Some(at)) if at + 1 < held.len() && agrees(turn, &held[at]) => Ok(before + at + 1),
        _ => Err(contradiction(prompt, field, side)),
    }
}

pub fn leading_systems<'m, 'a>(chat: &'m [Message<'a>]) -> &'m [Message<'a>] {
    let count = chat.iter().take_while(|message| is_system(message)).count();
    &chat[..count]
}

pub fn begins_with(chat: &[Message], turns: &[Message]) -> bool {
    chat.len() >= turns.len()
        && turns
            .iter()
            .zip(chat)
            .all(|(turn, held)| agrees(turn, held))
}

/// Whether the chat's message says what the prompt's says; the prompt may lack its further keys.
fn agrees(turn: &Message, held: &Message) -> bool {
    let keys = turn.said_keys();
    turn.role == held.role
        && turn.content.trim() == held.content.trim()
        && (keys.is_empty() || keys == held.said_keys())
}

/// Where the prompt ends inside the chat's last turn, which is the assistant's, part the turn there.
fn split_last_turn<'a>(turns: &[Message<'a>], before: usize, chat: &mut Vec<Message<'a>>) {
    let Some((begun, earlier)) = turns.split_last() else {
        return;
    };
    if begun.role != "assistant" || chat.len() != before + turns.len() {
        return;
    }
    let Some(last) = chat.last() else { return };
    let rest = last.content.strip_prefix(&*begun.content);
    let is_begun = last.role == "assistant" && begins_with(&chat[before..], earlier);
    if let Some(rest) = rest.filter(|rest| is_begun && !rest.is_empty()) {
        let answer = Message {
            content: Cow::Owned(rest.to_owned()),
            ..last.clone()
        };
        chat.pop();
        chat.push(begun.clone());
        chat.push(answer);
    }
}

pub fn contradiction(prompt: &[Message], field: &str, side: &str) -> Reject {
    Reject {
        reason: "prompt_mismatch",
        field: field.to_owned(),
        value: shorten(prompt.last().map_or("", |message| &message.content)),
        rule: format!(
            "{side} begins with no answer, so it is the whole chat, and {field} must agree with it: be its beginning, or \
             its last user turn"
        ),
        remedy: "mend the row, or leave one of the two out",
    }
}

/// Append turns to a prompt; what the assistant has begun there goes on in the first of them.
pub fn append<'a>(prompt: &mut Vec<Message<'a>>, turns: impl IntoIterator<Item = Message<'a>>) {
    let mut turns = turns.into_iter();
    if let Some(first) = turns.next() {
        match prompt.last_mut().filter(|last| can_go_on(last)) {
            Some(begun) if first.role == "assistant" => begun.go_on(&first),
            _ => prompt.push(first),
        }
    }
    prompt.extend(turns);
}

fn can_go_on(last: &Message) -> bool {
    last.role == "assistant" && !last.calls_tools()
}

/// Mark the prompt's last message as a turn of the assistant that the response goes on.
pub fn leave_open(prompt: &mut [Message]) {
    if let Some(last) = prompt.last_mut().filter(|last| can_go_on(last)) {
        last.set_open(true);
    }
}
