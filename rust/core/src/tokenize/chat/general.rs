//! Texts of a row by rendering its chats.

use std::ops::Range;

use minijinja::value::Value;

use super::answer::{Answer, Asked};
use super::ends::{is_endless, without_end};
use super::places::Around;
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
        let first = row.prompt.len();
        let Given {
            chat,
            content,
            around,
            mut notes,
        } = self.give(work, response)?;
        let index = chat.len() - 1;
        let text = self.render(response.field, &chat, false)?;
        let shared = shared_bytes(prompt, &text);
        if shared < least {
            return Err(unfit(
                response,
                "the rendered chat must begin with the rendered prompt, but for what is written behind its last message",
            ));
        }
        let parts = self.place_turns(work, row, response, &chat, first..shared, &text)?;
        if content.trim().is_empty() {
            let endless = response.complete && self.turn_end(&chat).is_empty();
            notes.without_end = usize::from(endless);
            notes += key_reasoning(&chat[index], &text[shared..]);
            return Ok(Reply {
                text,
                parts,
                shared,
                notes,
            });
        }
        let from = parts.turns.last().copied();
        // A response of one message follows the prompt; of several, the last one follows those before it.
        let before = from.and_then(|_| {
            let before = self.template.render(&chat[..index], true, &self.options);
            before.ok()
        });
        let asked = Asked {
            chat: &chat,
            content,
            from: from.unwrap_or(least),
            prompt: before.as_deref().unwrap_or(prompt),
            around,
            text,
        };
        let rule = "the chat template must write the response's content as it stands";
        let answer = self.answer(&asked).ok_or_else(|| unfit(response, rule))?;
        if !work.score_reasoning && answer.is_reasoning_alone() {
            return Err(refusals::no_answer(response, content));
        }
        notes += answer.notes;
        let scored = answer.scored(work.score_reasoning);
        let shared = if from.is_none() {
            answer.shared
        } else {
            shared
        };
        let Answer {
            mut text, content, ..
        } = answer;
        let ended = Parts::ended(&mut text, content, response.complete);
        let parts = Parts {
            content: ended.content,
            stop: ended.stop,
            scored,
            ..parts
        };
        Ok(Reply {
            text,
            parts,
            shared,
            notes,
        })
    }

    /// The ends of the response's messages, from `first.start` on and from byte `first.end`, and what the assistant wrote
    /// in them.
    fn place_turns(
        &self,
        work: &Tokenization,
        row: &Row,
        response: &Response,
        chat: &[Value],
        first: Range<usize>,
        text: &str,
    ) -> Result<Parts, Reject> {
        let messages: Vec<&Message> = row.prompt.iter().chain(&*response.messages).collect();
        let rendered = Rendered::new(self, chat, &messages, text, false);
        let mut ends = self.turn_ends(&rendered, first.clone());
        if !self.close_turns(&rendered, first.start, &mut ends) {
            return Err(unfit(
                response,
                "where the assistant's tool calls end must be seen in the rendered chat; the chat template writes a \
                 message otherwise when more follow, without the turn end of an answer",
            ));
        }
        let turns: Vec<usize> = ends.iter().map(|end| end.at).collect();
        let mut all_ends = turns.clone();
        all_ends.push(text.len());
        Ok(Parts {
            stop: text.trim_end().len(),
            first_turn: first.start,
            written: self.written(&rendered, first, &all_ends, work.score_reasoning),
            scored: text.len(),
            turns,
            content: None,
        })
    }

    /// The chat with a response, such that the template writes its tool calls and one end of its turn.
    fn give<'a>(&self, work: &Tokenization, response: &'a Response) -> Result<Given<'a>, Reject> {
        let mut chat = self.prompt.clone();
        chat.extend(values(response.field, &response.messages)?);
        let rule = "the chat template must write the assistant's tool calls, which it leaves out";
        let mut chat = self
            .with_calls(&chat, self.prompt.len())
            .ok_or_else(|| unfit(response, rule))?;
        let index = chat.len() - 1;
        let around = self.around(&chat, index, false);
        let whole = response.content();
        let (mut content, mut notes) = (whole, Notes::default());
        if response.complete && !calls_tools(&chat[index]) {
            let behind = around.as_ref().map_or("", |around| &around.behind);
            content = without_end(whole, behind, work.eos);
            notes.without_end = usize::from(is_endless(content, behind, work.eos));
            notes.ends_removed = usize::from(content.len() < whole.len());
        }
        if content.len() < whole.len() {
            if content.trim().is_empty() {
                return Err(refusals::empty_response(response, whole));
            }
            chat[index] = with_keys(&chat[index], &[("content", Value::from(content))]);
        }
        Ok(Given {
            chat,
            content,
            around,
            notes,
        })
    }
}

/// A chat with a response, the answer last.
struct Given<'a> {
    chat: Vec<Value>,
    content: &'a str, // the answer's
    around: Option<Around>,
    notes: Notes,
}

fn unfit(response: &Response, rule: &str) -> Reject {
    let (content, remedy) = (response.content(), "pass another chat_template");
    Reject::new(response.field, content, "template", rule, remedy)
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
