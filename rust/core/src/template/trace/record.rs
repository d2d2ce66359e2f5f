//! The record of a rendering that is followed on this thread: what was asked about contents, and with what answer.

use std::cell::RefCell;

use crate::template::content::{Guard, Question, Slot, ask};

/// Guards of a rendering: a chat that asks more of its contents is hardly met twice.
const MOST_GUARDS: usize = 4096;

#[derive(Default)]
struct Record {
    contents: Vec<String>,
    slots: Vec<Slot>, // by number
    guards: Vec<Guard>,
    given_up: bool,
}

thread_local! {
    static RECORD: RefCell<Option<Record>> = const { RefCell::new(None) };
}

/// A rendering of `contents` begins.
pub fn begin(contents: &[&str]) {
    RECORD.set(Some(Record {
        contents: contents.iter().map(ToString::to_string).collect(),
        ..Record::default()
    }));
}

/// The rendering is over: its guards, if all that was done with contents could be followed.
pub fn end() -> Option<Vec<Guard>> {
    let record = RECORD.take()?;
    (!record.given_up).then_some(record.guards)
}

/// Whether a rendering is followed.
pub fn active() -> bool {
    RECORD.with_borrow(Option::is_some)
}

/// A content was looked at in a way that cannot be followed.
pub fn give_up() {
    RECORD.with_borrow_mut(|record| {
        if let Some(record) = record {
            record.given_up = true;
        }
    });
}

/// The answer for the content at hand, written down.
pub fn decide(slot: &Slot, question: Question) -> bool {
    RECORD.with_borrow_mut(|record| {
        let Some(record) = record else { return false };
        let answer = ask(slot.of(&record.contents[slot.message]), &question);
        let guard = Guard {
            slot: slot.clone(),
            question,
            answer,
        };
        if record.guards.len() >= MOST_GUARDS {
            record.given_up = true;
        } else if !record.guards.contains(&guard) {
            record.guards.push(guard);
        }
        answer
    })
}

/// Bytes of the content that stands in the slot.
pub fn bytes_of(slot: &Slot) -> usize {
    RECORD.with_borrow(|record| {
        let contents = record.as_ref().map(|record| &record.contents);
        contents.map_or(0, |contents| contents[slot.message].len())
    })
}

/// The slot's number among those that were written.
pub fn number_of(slot: &Slot) -> Option<usize> {
    RECORD.with_borrow_mut(|record| {
        let slots = &mut record.as_mut()?.slots;
        let known = slots.iter().position(|known| known == slot);
        Some(known.unwrap_or_else(|| {
            slots.push(slot.clone());
            slots.len() - 1
        }))
    })
}

pub fn slot(number: usize) -> Option<Slot> {
    RECORD.with_borrow(|record| record.as_ref()?.slots.get(number).cloned())
}
