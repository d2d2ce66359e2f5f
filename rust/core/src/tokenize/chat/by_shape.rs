//! Texts of a row whose chats have shapes that the template has shown.

use std::sync::Arc;

use super::ends::{is_endless, without_end};
use super::reasoning;
use crate::message::Message;
use crate::template::{ChatTemplate, Place, Places, Shape};
use crate::tokenize::input::{Response, Row, Tokenization};
use crate::tokenize::texts::{Notes, Parts, Prompt, Texts};

/// Shapes that rows before had; most rows have one of them.
#[derive(Default)]
pub struct Recent(Vec<Arc<Shape>>);

impl Recent {
    const MOST: usize = 16;

    fn find(&mut self, template: &ChatTemplate, chat: &[&Message]) -> Option<Arc<Shape>> {
        if let Some(shape) = self.0.iter().find(|shape| shape.fits(chat)) {
            return Some(shape.clone());
        }
        let shape = template.shape(chat)?;
        self.0.truncate(Self::MOST - 1);
        self.0.push(shape.clone());
        Some(shape)
    }
}

/// The row's texts; None where it has no shape.
pub fn render(work: &Tokenization, row: &Row, shapes: &mut Recent, out: &mut Texts) -> Option<()> {
    let plain = |message: &Message| message.extra.is_none();
    if row.tools.is_some() || row.template_kwargs.is_some() || !row.prompt.iter().all(plain) {
        return None;
    }
    out.notes = Notes::default();
    out.responses
        .resize_with(row.responses.len(), Default::default);
    let mut chat: Vec<&Message> = Vec::with_capacity(row.prompt.len() + 1);
    chat.extend(row.prompt.iter());
    let mut of_first = None;
    for (index, response) in row.responses.iter().enumerate() {
        let [message] = &*response.messages else {
            return None;
        };
        chat.truncate(row.prompt.len());
        chat.push(message);
        let shape = plain(message).then(|| shapes.find(work.template, &chat))??;
        let (before, rest) = out.responses.split_at_mut(index);
        let (text, parts) = &mut rest[0];
        text.clear();
        match (before.first(), &of_first) {
            (Some((first, _)), Some(other)) if Arc::ptr_eq(other, &shape) => {
                text.push_str(&first[..out.prompt.bytes]); // of one shape: of one prompt
            }
            (Some((first, _)), _) => {
                shape.write_prompt(&chat, text);
                if *text != first[..out.prompt.bytes] {
                    return None;
                }
            }
            _ => {
                out.prompt = of_prompt(shape.write_prompt(&chat, text));
                of_first = Some(shape.clone());
            }
        }
        let content = shape.write_response(&chat, text)?;
        let scored = scored(
            work,
            response,
            text,
            out.prompt.bytes,
            &content,
            &mut out.notes,
        )?;
        *parts = Parts {
            first_turn: row.prompt.len(),
            scored,
            ..Parts::ended(text, content, response.complete)
        };
    }
    Some(())
}

/// The byte from which on the response is scored; None where it must be taken apart.
fn scored(
    work: &Tokenization,
    response: &Response,
    text: &str,
    prompt: usize,
    place: &Place,
    notes: &mut Notes,
) -> Option<usize> {
    let (shown, behind) = (&text[place.range.clone()], &text[place.range.end..]);
    if response.complete {
        if without_end(shown, behind, work.eos).len() < shown.len() {
            return None;
        }
        notes.without_end += usize::from(is_endless(shown, behind, work.eos));
    }
    let Some(split) = reasoning::split(shown, true) else {
        return Some(place.range.start);
    };
    let before = &text[prompt..place.range.start];
    let blank = |range: &str| range.trim().is_empty();
    if before.contains(split.marks.1) || blank(&shown[split.inner]) || blank(&shown[split.answer..])
    {
        return None;
    }
    notes.reasoning += 1;
    let answer = if work.score_reasoning {
        0
    } else {
        reasoning::skip_white(shown, split.answer)
    };
    Some(place.range.start + answer)
}

fn of_prompt(places: Places) -> Prompt {
    Prompt {
        bytes: places.boundary,
        generation: places.generation,
        cut: false,
        parts: Parts {
            content: places.prompt,
            stop: places.boundary,
            turns: places.turns,
            ..Parts::default()
        },
    }
}
