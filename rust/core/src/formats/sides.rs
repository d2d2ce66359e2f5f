//! The two sides of a pair: what they share is the prompt, what each adds is its response.

use super::Reject;
use super::agreement::{agree, append, is_whole, leave_open};
use super::chat::Said;
use super::checks::check_response;
use super::fields::with_system;
use super::json::Fields;
use super::message::{Message, is_same_chat};
use super::rivals::Reading;
use crate::reject::shorten;

/// What chosen and rejected say, and the prompt before both.
pub struct Sides<'a> {
    pub prompt: Vec<Message<'a>>,
    pub chosen: Vec<Message<'a>>,
    pub rejected: Vec<Message<'a>>,
    /// The fields of the prompt and of the sides.
    names: [&'static str; 3],
    /// Messages of both sides behind which the responses begin, where the row says it.
    boundary: Option<usize>,
}

impl<'a> Sides<'a> {
    /// Of whole chats, or of answers to a prompt.
    pub fn new(
        prompt: Said<'a>,
        mut chosen: Said<'a>,
        mut rejected: Said<'a>,
        names: [&'static str; 3],
    ) -> Self {
        if prompt.is_open {
            chosen.drop_space();
            rejected.drop_space();
        }
        Self {
            prompt: prompt.messages,
            chosen: chosen.messages,
            rejected: rejected.messages,
            names,
            boundary: None,
        }
    }

    /// Of whole chats.
    pub fn of_chats(chosen: Vec<Message<'a>>, rejected: Vec<Message<'a>>) -> Self {
        Self {
            prompt: Vec::new(),
            chosen,
            rejected,
            names: ["prompt", "chosen", "rejected"],
            boundary: None,
        }
    }

    /// Part prompt and responses; `system` is what the row says of it in a field of its own.
    pub fn part(&mut self, system: Option<&Message<'a>>) -> Result<(), Reject> {
        let whole = [is_whole(&self.chosen), is_whole(&self.rejected)];
        if whole == [true, true] && self.prompt.iter().all(Message::is_blank) {
            self.prompt.clear(); // the chats hold it
        }
        if let Some(system) = system {
            if self.prompt.is_empty() {
                with_system(&mut self.chosen, system)?;
                with_system(&mut self.rejected, system)?;
            } else {
                with_system(&mut self.prompt, system)?;
            }
        }
        check_response(self.chosen.last(), self.names[1])?;
        check_response(self.rejected.last(), self.names[2])?;
        if !self.prompt.is_empty() && whole.contains(&true) {
            self.compare(whole)?;
        }
        self.divide()?;
        if is_same_chat(&self.chosen, &self.rejected) {
            let name = self.names[2];
            return Err(Reject {
                reason: "identical_pair",
                field: name.into(),
                value: shorten(self.rejected.last().map_or("", |message| &message.content)),
                rule: format!("{} and {name} must differ", self.names[1]),
                remedy: "drop the row",
            });
        }
        Ok(())
    }

    /// What the row says, once its parts are known.
    pub fn reading(&self, fields: &Fields) -> Reading<'_, 'a> {
        let [asked, chosen, rejected] = self.names;
        let is_named = fields.get(asked).is_some();
        Reading {
            asked: if is_named { asked } else { chosen },
            prompt: &self.prompt,
            responses: vec![(chosen, &self.chosen[..]), (rejected, &self.rejected[..])],
        }
    }

    /// Put whole chats in the place of the prompt that they hold; an answer gets the prompt of the other side.
    fn compare(&mut self, whole: [bool; 2]) -> Result<(), Reject> {
        let prompt = std::mem::take(&mut self.prompt);
        let [field, names @ ..] = self.names;
        let mut ends = [None; 2];
        for (at, chat) in [&mut self.chosen, &mut self.rejected]
            .into_iter()
            .enumerate()
        {
            if whole[at] {
                ends[at] = Some(agree(&prompt, chat, (field, names[at]))?);
            }
        }
        match ends {
            [Some(end), None] => {
                self.rejected
                    .splice(0..0, self.chosen[..end].iter().cloned());
            }
            [None, Some(end)] => {
                self.chosen
                    .splice(0..0, self.rejected[..end].iter().cloned());
            }
            _ => {}
        }
        self.boundary = ends[0].or(ends[1]);
        Ok(())
    }

    /// Move what the sides share, message by message, into the prompt, until the rest is the assistant's doing alone.
    fn divide(&mut self) -> Result<(), Reject> {
        let are_answers = |at: usize| {
            let rest = |side: &'_ [Message]| side.get(at..).is_some_and(is_response);
            rest(&self.chosen) && rest(&self.rejected)
        };
        let named = match self.boundary {
            Some(at) => is_same_chat(&self.chosen[..at], self.rejected.get(..at).unwrap_or(&[]))
                .then_some(at),
            None => (!self.prompt.is_empty()).then_some(0),
        };
        let at = named
            .filter(|&at| are_answers(at))
            .unwrap_or_else(|| self.shared());
        if !are_answers(at) {
            return Err(self.diverging(at));
        }
        append(&mut self.prompt, self.chosen.drain(..at));
        self.rejected.drain(..at);
        if named == Some(at) {
            leave_open(&mut self.prompt);
        }
        Ok(())
    }

    /// How many messages both sides begin with; each keeps one, and none begins with a tool's answer.
    fn shared(&self) -> usize {
        let both = self.chosen.iter().zip(&self.rejected);
        let same = both.take_while(|(a, b)| a.is_same_turn(b)).count();
        let mut shared = same.min(self.chosen.len().min(self.rejected.len()) - 1);
        while shared > 0
            && [&self.chosen, &self.rejected]
                .iter()
                .any(|side| side[shared].role == "tool")
        {
            shared -= 1;
        }
        shared
    }

    fn diverging(&self, shared: usize) -> Reject {
        let before = self.prompt.len();
        let shown = self
            .rejected
            .get(shared)
            .map_or("", |message| &message.content);
        Reject {
            reason: "diverging_chats",
            field: format!("{}[{shared}]", self.names[2]),
            value: shorten(shown),
            rule: format!(
                "chosen and rejected must differ in the assistant's last turn alone; they part at message {} of {} and {}",
                before + shared + 1,
                before + self.chosen.len(),
                before + self.rejected.len()
            ),
            remedy: "drop the row",
        }
    }
}

/// The assistant's doing: one message, or several with the tools' answers between them.
fn is_response(messages: &[Message]) -> bool {
    let one_turn = |pair: &[Message]| pair.iter().any(|message| message.role == "tool");
    messages
        .first()
        .is_some_and(|first| first.role == "assistant")
        && messages
            .iter()
            .all(|message| matches!(message.role, "assistant" | "tool"))
        && messages.windows(2).all(one_turn)
}
