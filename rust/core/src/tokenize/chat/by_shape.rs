//! Texts of a row whose chats have shapes that the template has shown.

use std::sync::Arc;

use crate::message::Message;
use crate::template::{ChatTemplate, Places, Shape};
use crate::tokenize::input::Row;
use crate::tokenize::texts::{Parts, Prompt, Texts};

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
pub fn render(
    template: &ChatTemplate,
    row: &Row,
    shapes: &mut Recent,
    out: &mut Texts,
) -> Option<()> {
    let plain = |message: &Message| message.extra.is_none();
    if row.tools.is_some() || row.template_kwargs.is_some() || !row.prompt.iter().all(plain) {
        return None;
    }
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
        let shape = plain(message).then(|| shapes.find(template, &chat))??;
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
        *parts = Parts {
            first_turn: row.prompt.len(),
            ..Parts::ended(text, content, response.complete)
        };
    }
    Some(())
}

fn of_prompt(places: Places) -> Prompt {
    Prompt {
        bytes: places.boundary,
        generation: places.generation,
        parts: Parts {
            content: places.prompt,
            stop: places.boundary,
            turns: places.turns,
            ..Parts::default()
        },
    }
}
