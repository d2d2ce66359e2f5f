//! Fields of other formats that say a row's prompt or responses once more: they must say the same.

use super::Reject;
use super::agreement::{append, begins_with, is_whole, leading_systems};
use super::alternatives::{contradiction, is_empty};
use super::chat::text_or_chat;
use super::json::Fields;
use super::message::{Message, Origin};
use super::schema::Format;

/// What a row was read as.
pub struct Reading<'r, 'a> {
    /// The field that said the prompt, and what it said.
    pub asked: &'r str,
    pub prompt: &'r [Message<'a>],
    /// The fields of the responses, and what each of them said.
    pub responses: Vec<(&'r str, &'r [Message<'a>])>,
}

/// Let the fields by which another format would have read the row say the same; one that holds neither text nor chat
/// says nothing.
pub fn check_rivals<'r, 'a: 'r>(
    fields: &Fields<'a>,
    format: Format,
    origin: &Origin,
    reading: impl Fn() -> Reading<'r, 'a>,
) -> Result<(), Reject> {
    for &name in format.entry().compared {
        let Some(raw) = fields.get(name).filter(|raw| !is_empty(*raw)) else {
            continue;
        };
        let is_answer = !PROMPTS.contains(&name);
        let role = if is_answer { "assistant" } else { "user" };
        let is_chat = raw.get().starts_with('[');
        let said = match text_or_chat(raw, name, role, &origin.of_carried()) {
            Ok(said) if !(said.is_text && CHATS.contains(&name)) => said,
            _ => continue,
        };
        let reading = reading();
        let is_cut = fields.0.iter().any(|(name, _)| name.ends_with("_cut"));
        let (first, agrees) = if is_answer {
            reading.answers(name, &said.messages)
        } else {
            let agrees = reading.begins(&said.messages, is_cut);
            let rendered = || said.is_text && !is_chat && reading.is_rendered_in(&said.messages);
            (reading.asked, agrees || rendered())
        };
        if !agrees {
            return Err(contradiction(first, name, raw));
        }
    }
    Ok(())
}

const PROMPTS: [&str; 4] = ["prompt", "instruction", "conversations", "messages"];
const CHATS: [&str; 2] = ["conversations", "messages"];

impl<'a> Reading<'_, 'a> {
    /// Whether the messages are the beginning of the prompt with a response, or one text that is a message of the prompt.
    fn begins(&self, said: &[Message<'a>], is_cut: bool) -> bool {
        let systems = leading_systems(said);
        let stated = leading_systems(self.prompt);
        let turns = &said[systems.len()..];
        if !systems.is_empty() && !begins_with(stated, systems) {
            return false;
        }
        if let ([], [turn]) = (systems, turns) {
            let mut asked = self
                .prompt
                .iter()
                .filter(|message| message.role != "assistant");
            if asked.any(|message| same_words(&message.content, &turn.content)) {
                return true;
            }
        }
        let held = self.prompt[stated.len()..].to_vec();
        begins_with(&held, turns)
            || self.responses.iter().any(|(_, response)| {
                let mut whole = held.clone();
                append(&mut whole, response.iter().cloned());
                begins_with(&whole, turns) || (is_cut && is_longer(turns, &whole))
            })
    }

    /// Whether one text holds the prompt's last message in a template as Alpaca's: line by line, below a heading.
    fn is_rendered_in(&self, said: &[Message]) -> bool {
        let ([text], Some(last)) = (said, self.prompt.last()) else {
            return false;
        };
        let mut lines = text.content.lines().map(str::trim);
        lines.any(|line| line == "### Instruction:")
            && last
                .content
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .all(|wanted| lines.any(|line| line == wanted))
    }

    /// The response that the field says again, and whether it does.
    fn answers(&self, name: &str, said: &[Message]) -> (&str, bool) {
        let own = |(field, _): &&(&str, &[Message])| match name {
            "chosen" | "rejected" => *field == self.side(name),
            _ => true,
        };
        let Some((field, response)) = self.responses.iter().find(own) else {
            return ("", true);
        };
        if is_whole(said) {
            let mut whole = self.prompt.to_vec();
            append(&mut whole, response.iter().cloned());
            let whole = &whole[leading_systems(&whole).len()..];
            let turns = &said[leading_systems(said).len()..];
            return (
                field,
                turns.len() == whole.len() && begins_with(whole, turns),
            );
        }
        let is_turn = |message: &Message| {
            message.role == "assistant"
                && said
                    .iter()
                    .all(|one| same_words(&one.content, &message.content))
        };
        let mut turns = self.prompt.iter().chain(response.iter());
        (
            field,
            begins_with(response, said) || (said.len() == 1 && turns.any(is_turn)),
        )
    }

    /// The field of the chosen response, which comes first, or of the rejected one.
    fn side(&self, name: &str) -> &str {
        let at = usize::from(name == "rejected");
        self.responses.get(at).map_or("", |(field, _)| field)
    }
}

/// Whether a chat's last message goes on where that of a cut one ends.
fn is_longer(chat: &[Message], cut: &[Message]) -> bool {
    match (chat.split_last(), cut.split_last()) {
        (Some((last, before)), Some((end, cut))) => {
            before.len() == cut.len()
                && begins_with(cut, before)
                && last.content.trim_start().starts_with(end.content.trim())
        }
        _ => false,
    }
}

fn same_words(one: &str, other: &str) -> bool {
    one.trim() == other.trim() || one.split_whitespace().eq(other.split_whitespace())
}
