//! Learning shapes: one for all chats of the same roles whose contents give the same answers.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

use minijinja::Error;
use minijinja::value::Value;

use super::content::{Guard, Piece};
use super::shape::Shape;
use super::trace::follow;
use crate::message::Message;

/// Sequences of roles that are remembered, shapes of each, and attempts to learn one.
const MOST_KEYS: usize = 4096;
/// Messages of a chat whose shape is learned: learning renders every beginning of it.
const MOST_MESSAGES: usize = 64;
const MOST_SHAPES: usize = 16;
const MOST_FAILURES: u32 = 4;

/// Renders messages, with a generation prompt or without.
type Render<'a> = dyn Fn(&[Value], bool) -> Result<String, Error> + 'a;

#[derive(Default)]
struct Known {
    shapes: Vec<Arc<Shape>>,
    failures: u32,
}

/// What a template has been seen to do.
#[derive(Default)]
pub struct Shapes(RwLock<HashMap<u64, Known>>);

impl Shapes {
    /// The shape of a chat whose last message is the response; None where it has none, or may not be asked for.
    pub fn find(&self, chat: &[&Message], render: &Render) -> Option<Arc<Shape>> {
        if chat.len() > MOST_MESSAGES || chat.iter().any(|message| message.extra.is_some()) {
            return None;
        }
        let key = key(chat);
        {
            let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let entry = known.get(&key);
            if let Some(shape) =
                entry.and_then(|entry| entry.shapes.iter().find(|shape| shape.fits(chat)))
            {
                return Some(shape.clone());
            }
            let full = |entry: &Known| {
                entry.failures >= MOST_FAILURES || entry.shapes.len() >= MOST_SHAPES
            };
            if entry.map_or(known.len() >= MOST_KEYS, full) {
                return None;
            }
        }
        let learned = learn(chat, render).map(Arc::new);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry(key).or_default();
        match &learned {
            Some(shape) if !entry.shapes.iter().any(|s| s.fits(chat)) => {
                entry.shapes.push(shape.clone());
            }
            Some(_) => {}
            None => entry.failures += 1,
        }
        learned
    }

    /// Shapes learned so far.
    pub fn count(&self) -> usize {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.values().map(|entry| entry.shapes.len()).sum()
    }
}

fn learn(chat: &[&Message], render: &Render) -> Option<Shape> {
    let prompt_messages = chat.len() - 1;
    let mut guards = Vec::new();
    let mut learn = |count: usize, add: bool| {
        let (pieces, more) = follow_chat(&chat[..count], add, render)?;
        for guard in more {
            if !guards.contains(&guard) {
                guards.push(guard);
            }
        }
        Some(pieces)
    };
    let whole = learn(chat.len(), false)?;
    let boundary = end_of_prefix(&learn(prompt_messages, true)?, &whole)?;
    let slots = |message: usize| {
        whole
            .iter()
            .enumerate()
            .filter_map(move |(index, piece)| match piece {
                Piece::Slot(slot) if slot.message == message => Some(index),
                _ => None,
            })
    };
    // The end of what a chat renders alone, or (where it renders differently) of its last content.
    let mut end_of = |count: usize| -> Option<Cut> {
        if let Some(end) = end_of_prefix(&learn(count, false)?, &whole) {
            return Some(end);
        }
        match slots(count - 1).collect::<Vec<_>>().as_slice() {
            [index] => Some((index + 1, 0)),
            _ => None,
        }
    };
    let ends: Vec<Cut> = (1..prompt_messages)
        .map(&mut end_of)
        .collect::<Option<_>>()?;
    let generation = end_of(prompt_messages)?;
    if !ends.is_sorted() || ends.last().is_some_and(|end| *end > boundary) || generation > boundary
    {
        return None;
    }
    let mut cuts = ends.clone();
    cuts.extend([boundary, generation]);
    let (pieces, places) = split(&whole, &cuts);
    let (turns, rest) = places.split_at(ends.len());
    let (boundary, generation) = (rest[0], rest[1]);
    let slots = |message: usize| {
        pieces
            .iter()
            .enumerate()
            .filter_map(move |(index, piece)| match piece {
                Piece::Slot(slot) if slot.message == message => Some(index),
                _ => None,
            })
    };
    let of_prompt: Vec<usize> = slots(prompt_messages - 1).collect();
    let of_response: Vec<usize> = slots(prompt_messages).collect();
    let from = turns.last().copied().unwrap_or(0);
    let prompt = match of_prompt.as_slice() {
        [] if chat[prompt_messages - 1].content.trim().is_empty() => None,
        [index] if (from..boundary).contains(index) => Some(*index),
        _ => return None,
    };
    match of_response.as_slice() {
        [response] if *response >= boundary => Some(Shape {
            roles: chat
                .iter()
                .map(|message| message.role.to_string())
                .collect(),
            guards,
            response: *response,
            boundary,
            generation,
            turns: turns.to_vec(),
            prompt,
            pieces,
        }),
        _ => None,
    }
}

/// The pieces of a rendering, which spell what the template renders.
fn follow_chat(chat: &[&Message], add: bool, render: &Render) -> Option<(Vec<Piece>, Vec<Guard>)> {
    let contents: Vec<&str> = chat.iter().map(|message| &*message.content).collect();
    let (pieces, guards) = follow(&contents, |symbols| {
        let messages: Vec<Value> = chat
            .iter()
            .zip(symbols)
            .map(|(message, symbol)| {
                let role = ("role", Value::from(message.role));
                [role, ("content", symbol.clone())].into_iter().collect()
            })
            .collect();
        render(&messages, add)
    })?;
    let messages: Vec<Value> = chat
        .iter()
        .map(|message| message.to_value())
        .collect::<Result<_, _>>()
        .ok()?;
    let spelled: String = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Literal(text) => text.as_str(),
            Piece::Slot(slot) => slot.of(contents[slot.message]),
        })
        .collect();
    (render(&messages, add).ok()? == spelled).then_some((pieces, guards))
}

fn key(chat: &[&Message]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for message in chat {
        message.role.hash(&mut hasher);
    }
    hasher.finish()
}

/// A place among pieces: before byte `.1` of piece `.0`.
type Cut = (usize, usize);

/// Where `whole` stands after `prefix`, if it begins with it.
fn end_of_prefix(prefix: &[Piece], whole: &[Piece]) -> Option<Cut> {
    let Some((last, before)) = prefix.split_last() else {
        return Some((0, 0));
    };
    if whole.get(..before.len())? != before {
        return None;
    }
    match (last, whole.get(before.len())?) {
        (Piece::Literal(short), Piece::Literal(long)) if long == short => Some((prefix.len(), 0)),
        (Piece::Literal(short), Piece::Literal(long)) => long
            .starts_with(short.as_str())
            .then_some((before.len(), short.len())),
        (last, same) => (last == same).then_some((prefix.len(), 0)),
    }
}

/// The pieces with literals cut at `cuts`, and the index of the piece that each cut stands before.
fn split(whole: &[Piece], cuts: &[Cut]) -> (Vec<Piece>, Vec<usize>) {
    let mut order: Vec<Cut> = cuts.to_vec();
    order.sort_unstable();
    order.dedup();
    let (mut pieces, mut places) = (Vec::new(), HashMap::new());
    for (index, piece) in whole.iter().enumerate() {
        let mut from = 0;
        for &(_, at) in order.iter().filter(|cut| cut.0 == index) {
            if let (Piece::Literal(text), true) = (piece, at > from) {
                pieces.push(Piece::Literal(text[from..at].to_string()));
                from = at;
            }
            places.insert((index, at), pieces.len());
        }
        match piece {
            Piece::Literal(text) => pieces.push(Piece::Literal(text[from..].to_string())),
            slot @ Piece::Slot(_) => pieces.push(slot.clone()),
        }
    }
    let end = pieces.len();
    let found = cuts
        .iter()
        .map(|cut| places.get(cut).copied().unwrap_or(end))
        .collect();
    (pieces, found)
}
