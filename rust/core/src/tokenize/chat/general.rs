//! Texts of a row by rendering its chats.

use minijinja::value::Value;

use super::answer::{Answer, Asked};
use super::ends::{is_endless, without_end};
use super::reasoning;
use super::refusals;
use super::rendering::{Chat, calls_tools, shared_bytes, values, with_keys};
use super::turns::Rendered;
use crate::message::Message;
use crate::reject::Reject;
use crate::template::ChatTemplate;
use crate::tokenize::input::{Response, Row, Tokenization};
use crate::tokenize::texts::{Notes, Parts, Prompt, Texts};

/// The row's texts.
pub fn render(work: &Tokenization, row: &Row, template: &ChatTemplate) -> Result<Texts, Reject> {
    Chat::new(template, row)?.render_all(work, row)
}

/// A prompt's text with its parts, and the byte before which no response may begin.
struct Question {
    text: String,
    prompt: Prompt,
    least: usize,
}

/// A response's text with its parts, and the byte up to which it is the prompt's.
struct Reply {
    text: String,
    parts: Parts,
    shared: usize,
    notes: Notes,
}

impl Chat<'_> {
    fn render_all(&self, work: &Tokenization, row: &Row) -> Result<Texts, Reject> {
        let Question {
            text,
            mut prompt,
            least,
        } = self.render_prompt(row, work.limits.cuts_prompts())?;
        let mut replies = Vec::with_capacity(row.responses.len());
        for response in &row.responses {
            replies.push(self.render_response(work, row, response, &text, least)?);
        }
        let mut notes = Notes::default();
        let shared = replies.iter().map(|reply| reply.shared).min();
        if let Some(shared) = shared.filter(|shared| *shared < prompt.bytes) {
            prompt.cut_at(shared);
            notes.prompts_cut = 1;
        }
        let mut responses = Vec::with_capacity(replies.len());
        for mut reply in replies {
            if let Some(content) = &mut reply.parts.content {
                content.begin_at(prompt.bytes);
            }
            notes += reply.notes;
            responses.push((reply.text, reply.parts));
        }
        Ok(Texts {
            prompt,
            responses,
            notes,
        })
    }

    fn render_prompt(&self, row: &Row, find_generation: bool) -> Result<Question, Reject> {
        let text = self.render("prompt", &self.prompt, true)?;
        let messages: Vec<&Message> = row.prompt.iter().collect();
        let rendered = Rendered::new(self, &self.prompt, &messages, &text, true);
        let ends = self.turn_ends(&rendered, 0..0);
        let turns: Vec<usize> = ends.iter().map(|end| end.at).collect();
        let from = turns.last().copied().unwrap_or(0);
        let last = &row.prompt[row.prompt.len() - 1].content;
        let index = self.prompt.len() - 1;
        let content = self.locate(&self.prompt, index, last, from, &text, true);
        let generation = find_generation.then(|| self.prefix(&self.prompt, false, &text));
        let behind = content.as_ref().map(|content| content.range.end);
        let prompt = Prompt {
            bytes: text.len(),
            generation: generation.flatten().unwrap_or(behind.unwrap_or(text.len())),
            parts: Parts {
                content,
                stop: text.len(),
                turns,
                ..Parts::default()
            },
            cut: false,
        };
        Ok(Question {
            least: behind.unwrap_or(from),
            text,
            prompt,
        })
    }

    fn render_response(
        &self,
        work: &Tokenization,
        row: &Row,
        response: &Response,
        prompt: &str,
        least: usize,
    ) -> Result<Reply, Reject> {
        let mut chat = self.prompt.clone();
        chat.extend(values(response.field, &response.messages)?);
        let index = chat.len() - 1;
        let first = row.prompt.len();
        let last = response.messages.last();
        let whole = last.map_or("", |message| &*message.content);
        let unfit = |rule: &str| {
            let remedy = "pass another chat_template";
            Reject::new(response.field, whole, "template", rule, remedy)
        };
        let Some(mut chat) = self.with_calls(&chat, first) else {
            return Err(unfit(
                "the chat template must write the assistant's tool calls, which it leaves out",
            ));
        };
        let calls = calls_tools(&chat[index]);
        let around = self.around(&chat, index, false);
        let behind = around.as_ref().map_or("", |around| &around.behind);
        let bare = match response.complete && !calls {
            true => without_end(whole, behind, work.eos),
            false => whole,
        };
        let mut notes = Notes::default();
        if bare.len() < whole.len() {
            if bare.trim().is_empty() {
                return Err(refusals::empty_response(response, whole));
            }
            chat[index] = with_keys(&chat[index], &[("content", Value::from(bare))]);
            notes.ends_removed = 1;
        }
        let text = self.render(response.field, &chat, false)?;
        let shared = shared_bytes(prompt, &text);
        if shared < least {
            return Err(unfit(
                "the rendered chat must begin with the rendered prompt, but for what is written behind its last message",
            ));
        }
        let messages: Vec<&Message> = row.prompt.iter().chain(&*response.messages).collect();
        let rendered = Rendered::new(self, &chat, &messages, &text, false);
        let mut ends = self.turn_ends(&rendered, first..shared);
        if !self.close_turns(&rendered, first, &mut ends) {
            return Err(unfit(
                "where the assistant's tool calls end must be seen in the rendered chat; the chat template writes a \
                 message otherwise when more follow, without the turn end of an answer",
            ));
        }
        let turns: Vec<usize> = ends.iter().map(|end| end.at).collect();
        let mut all_ends = turns.clone();
        all_ends.push(text.len());
        let written = self.written(&rendered, first..shared, &all_ends, work.score_reasoning);
        let from = turns.last().copied();
        if bare.trim().is_empty() {
            let parts = Parts {
                stop: text.trim_end().len(),
                turns,
                first_turn: first,
                written,
                scored: text.len(),
                content: None,
            };
            notes += key_reasoning(&chat[index], &text[shared..]);
            notes.without_end = usize::from(response.complete && self.turn_end(&chat).is_empty());
            return Ok(Reply {
                text,
                parts,
                shared,
                notes,
            });
        }
        let prompted = match from {
            None => None, // the response is one message: it follows the prompt
            Some(_) => self
                .template
                .render(&chat[..index], true, &self.options)
                .ok(),
        };
        let endless = response.complete && !calls && is_endless(bare, behind, work.eos);
        notes.without_end = usize::from(endless);
        let asked = Asked {
            chat: &chat,
            content: bare,
            from: from.unwrap_or(least),
            prompt: prompted.as_deref().unwrap_or(prompt),
            around,
            text,
        };
        let answer = self.answer(&asked).ok_or_else(|| {
            unfit("the chat template must write the response's content as it stands")
        })?;
        if !work.score_reasoning && answer.is_reasoning_alone() {
            return Err(refusals::no_answer(response, whole));
        }
        notes += answer.notes;
        let scored = answer.scored(work.score_reasoning);
        let shared = match from {
            None => answer.shared,
            Some(_) => shared,
        };
        let Answer {
            mut text, content, ..
        } = answer;
        let parts = Parts {
            turns,
            first_turn: first,
            written,
            scored,
            ..Parts::ended(&mut text, content, response.complete)
        };
        Ok(Reply {
            text,
            parts,
            shared,
            notes,
        })
    }
}

/// What became of the reasoning of a message that is tool calls alone.
fn key_reasoning(message: &Value, text: &str) -> Notes {
    let key = reasoning::of_key(message);
    let shown = key.as_ref().is_some_and(|key| text.contains(key.trim()));
    Notes {
        reasoning: usize::from(shown),
        reasoning_dropped: usize::from(key.is_some() && !shown),
        ..Notes::default()
    }
}
