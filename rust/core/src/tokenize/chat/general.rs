//! Texts of a row by rendering its chats, message by message.

use super::rendering::{Chat, values};
use crate::message::Message;
use crate::reject::Reject;
use crate::template::ChatTemplate;
use crate::tokenize::input::{Response, Row};
use crate::tokenize::texts::{Parts, Prompt, Texts};

/// The row's texts.
pub fn render(template: &ChatTemplate, row: &Row, find_generation: bool) -> Result<Texts, Reject> {
    Chat::new(template, row)?.render_all(row, find_generation)
}

impl Chat<'_> {
    fn render_all(&self, row: &Row, find_generation: bool) -> Result<Texts, Reject> {
        let (text, prompt) = self.render_prompt(row, find_generation)?;
        let responses = row
            .responses
            .iter()
            .map(|response| self.render_response(row, response, &text))
            .collect::<Result<_, _>>()?;
        Ok(Texts { prompt, responses })
    }

    fn render_prompt(&self, row: &Row, find_generation: bool) -> Result<(String, Prompt), Reject> {
        let text = self.render("prompt", &self.prompt, true)?;
        let ends = self.turn_ends(
            &self.prompt,
            &row.prompt.iter().collect::<Vec<_>>(),
            0..0,
            &text,
            true,
        );
        let turns: Vec<usize> = ends.iter().map(|(end, _)| *end).collect();
        let from = turns.last().copied().unwrap_or(0);
        let last = &row.prompt[row.prompt.len() - 1].content;
        let index = self.prompt.len() - 1;
        let content = self.locate(&self.prompt, index, last, from, &text, true);
        let generation = find_generation.then(|| self.prefix(&self.prompt, false, &text));
        let behind = content
            .as_ref()
            .map_or(text.len(), |content| content.range.end);
        let prompt = Prompt {
            bytes: text.len(),
            generation: generation.flatten().unwrap_or(behind),
            parts: Parts {
                content,
                stop: text.len(),
                turns,
                ..Parts::default()
            },
        };
        Ok((text, prompt))
    }

    fn render_response(
        &self,
        row: &Row,
        response: &Response,
        prompt: &str,
    ) -> Result<(String, Parts), Reject> {
        let mut chat = self.prompt.clone();
        chat.extend(values(response.field, &response.messages)?);
        let mut text = self.render(response.field, &chat, false)?;
        let last = response
            .messages
            .last()
            .map_or("", |message| &*message.content);
        let unfit = |rule: &str| {
            Reject::new(
                response.field,
                last,
                "template",
                rule,
                "pass another chat_template",
            )
        };
        if !text.starts_with(prompt) {
            return Err(unfit(
                "the rendered chat must begin with the rendered prompt",
            ));
        }
        let messages: Vec<&Message> = row.prompt.iter().chain(&*response.messages).collect();
        let first_turn = row.prompt.len();
        let mut ends = self.turn_ends(&chat, &messages, first_turn..prompt.len(), &text, false);
        if !self.close_turns(&chat, first_turn, &mut ends, &text) {
            return Err(unfit(
                "where the assistant's tool calls end must be seen in the rendered chat; the chat template writes a \
                 message otherwise when more follow, without the turn end of an answer",
            ));
        }
        let turns: Vec<usize> = ends.iter().map(|(end, _)| *end).collect();
        let from = turns.last().copied().unwrap_or(prompt.len());
        let content = self
            .locate(&chat, chat.len() - 1, last, from, &text, false)
            .ok_or_else(|| {
                unfit("the chat template must write the response's content as it stands")
            })?;
        let mut all_ends = turns.clone();
        all_ends.push(text.len());
        let written = self.written(&chat, first_turn, prompt.len(), &all_ends, &text);
        let parts = Parts {
            turns,
            first_turn,
            written,
            ..Parts::ended(&mut text, content, response.complete)
        };
        Ok((text, parts))
    }
}
