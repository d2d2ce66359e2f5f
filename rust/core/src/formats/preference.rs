//! One preference row into a pair.

use std::borrow::Cow;

use super::checks::{check_prompt, check_response};
use super::fields::{flag, json_text, missing, number, others, required, system, with_system};
use super::instruction::question;
use super::json::{Fields, text};
use super::message::{Message, chat, message, text_or_chat, transcript};
use super::{Format, Reject, Rows};
use crate::reject::shorten;

/// A prompt with two responses, each of one message or several, the last of them the assistant's.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair<'a> {
    pub prompt: Vec<Message<'a>>,
    pub chosen: Vec<Message<'a>>,
    pub rejected: Vec<Message<'a>>,
    pub score_chosen: Option<f32>,
    pub score_rejected: Option<f32>,
    pub chosen_complete: bool,
    pub rejected_complete: bool,
    /// JSON texts, as the chat template takes them.
    pub tools: Option<Cow<'a, str>>,
    pub template_kwargs: Option<Cow<'a, str>>,
}

/// A chat that both sides share, and what each side adds to it.
struct Sides<'a> {
    prompt: Vec<Message<'a>>,
    chosen: Vec<Message<'a>>,
    rejected: Vec<Message<'a>>,
    names: (&'static str, &'static str),
}

/// Hand a preference row to `found`, with its further fields as a JSON object if they are to be carried.
pub fn parse_pair<T>(
    row: &[u8],
    format: Format,
    rows: Rows,
    carry: bool,
    found: impl FnOnce(&Pair, Option<&str>) -> T,
) -> Result<T, Reject> {
    let fields = Fields::of_row(row)?;
    let others = others(&fields, format, carry)?;
    parse(&fields, format, rows, |pair| found(pair, others.as_deref()))
}

/// Parse the row and hand the pair, which may borrow from texts that live no longer, to `found`.
fn parse<T>(
    fields: &Fields,
    format: Format,
    rows: Rows,
    found: impl FnOnce(&Pair) -> T,
) -> Result<T, Reject> {
    let mut texts = (Cow::Borrowed(""), Cow::Borrowed(""));
    if format == Format::Hh {
        texts.0 = text(required(fields, "chosen")?, "chosen")?;
        texts.1 = text(required(fields, "rejected")?, "rejected")?;
    }
    let mut sides = match format {
        Format::Hh => Sides::of_chats(
            transcript(&texts.0, "chosen")?,
            transcript(&texts.1, "rejected")?,
        ),
        Format::UltraFeedback => Sides::of_chats(
            chat(required(fields, "chosen")?, "chosen", rows)?,
            chat(required(fields, "rejected")?, "rejected", rows)?,
        ),
        Format::ShareGpt => sharegpt(fields, rows)?,
        Format::Shp => shp(fields)?,
        Format::Alpaca => alpaca(fields, rows)?,
        _ => preference(fields, rows)?,
    };
    if let Some(system) = system(fields)? {
        sides.add_system(&system)?;
    }
    sides.check_responses()?;
    sides.part()?;
    check_prompt(&sides.prompt)?;
    let scores = scores(fields, format)?;
    Ok(found(&Pair {
        prompt: sides.prompt,
        chosen: sides.chosen,
        rejected: sides.rejected,
        score_chosen: scores.0,
        score_rejected: scores.1,
        chosen_complete: flag(fields, "chosen_complete")?,
        rejected_complete: flag(fields, "rejected_complete")?,
        tools: json_text(fields, &["tools"], rows)?,
        template_kwargs: json_text(fields, &["template_kwargs", "chat_template_kwargs"], rows)?,
    }))
}

fn preference<'a>(fields: &Fields<'a>, rows: Rows) -> Result<Sides<'a>, Reject> {
    let (chosen, rejected) = (required(fields, "chosen")?, required(fields, "rejected")?);
    let prompt = match fields.get("prompt") {
        Some(prompt) => text_or_chat(prompt, "prompt", "user", rows)?,
        // Only whole chats can do without a prompt.
        None if [chosen, rejected]
            .iter()
            .all(|raw| raw.get().starts_with('[')) =>
        {
            Vec::new()
        }
        None => return Err(missing(fields, "prompt")),
    };
    Ok(Sides::new(
        prompt,
        text_or_chat(chosen, "chosen", "assistant", rows)?,
        text_or_chat(rejected, "rejected", "assistant", rows)?,
    ))
}

fn sharegpt<'a>(fields: &Fields<'a>, rows: Rows) -> Result<Sides<'a>, Reject> {
    let side = |name: &str| {
        let raw = required(fields, name)?;
        if raw.get().starts_with('[') {
            chat(raw, name, rows)
        } else {
            Ok(vec![message(raw, name, rows)?])
        }
    };
    let prompt = chat(required(fields, "conversations")?, "conversations", rows)?;
    Ok(Sides::new(prompt, side("chosen")?, side("rejected")?))
}

/// `labels` 1: A is preferred.
fn shp<'a>(fields: &Fields<'a>) -> Result<Sides<'a>, Reject> {
    let history = text(required(fields, "history")?, "history")?;
    let (chosen, rejected) = if a_is_chosen(fields)? {
        ("human_ref_A", "human_ref_B")
    } else {
        ("human_ref_B", "human_ref_A")
    };
    let answer = |name: &str| -> Result<Vec<Message<'a>>, Reject> {
        let answer = text(required(fields, name)?, name)?;
        Ok(vec![Message::new("assistant", answer)])
    };
    let mut sides = Sides::new(
        vec![Message::new("user", history)],
        answer(chosen)?,
        answer(rejected)?,
    );
    sides.names = (chosen, rejected);
    Ok(sides)
}

fn a_is_chosen(fields: &Fields) -> Result<bool, Reject> {
    let labels = required(fields, "labels")?;
    match labels.get() {
        "1" | "1.0" | "true" => Ok(true),
        "0" | "0.0" | "false" => Ok(false),
        other => Err(Reject {
            reason: "not_a_label",
            field: "labels".into(),
            value: shorten(other),
            rule: "labels must be 1 (A is preferred) or 0".into(),
            remedy: "mend the field, or drop the row",
        }),
    }
}

/// `chosen` and `rejected`, or `output` [chosen, rejected].
fn alpaca<'a>(fields: &Fields<'a>, rows: Rows) -> Result<Sides<'a>, Reject> {
    let prompt = question(fields)?;
    if fields.get("chosen").is_some() || fields.get("output").is_none() {
        return Ok(Sides::new(
            prompt,
            text_or_chat(required(fields, "chosen")?, "chosen", "assistant", rows)?,
            text_or_chat(required(fields, "rejected")?, "rejected", "assistant", rows)?,
        ));
    }
    let output = required(fields, "output")?;
    let both = output.items().unwrap_or_default();
    let [chosen, rejected] = both[..] else {
        return Err(Reject {
            reason: "not_a_pair",
            field: "output".into(),
            value: shorten(output.get()),
            rule: "output must be a list of two, [chosen, rejected]".into(),
            remedy: "leave two, or write chosen and rejected",
        });
    };
    let mut sides = Sides::new(
        prompt,
        vec![Message::new("assistant", text(chosen, "output[0]")?)],
        vec![Message::new("assistant", text(rejected, "output[1]")?)],
    );
    sides.names = ("output[0]", "output[1]");
    Ok(sides)
}

/// Of the chosen and of the rejected response; SHP numbers its answers by A and B.
fn scores(fields: &Fields, format: Format) -> Result<(Option<f32>, Option<f32>), Reject> {
    if format == Format::Shp {
        let (a, b) = (number(fields, &["score_A"])?, number(fields, &["score_B"])?);
        return Ok(if a_is_chosen(fields)? { (a, b) } else { (b, a) });
    }
    Ok((
        number(fields, &["score_chosen", "chosen_score", "chosen-rating"])?,
        number(
            fields,
            &["score_rejected", "rejected_score", "rejected-rating"],
        )?,
    ))
}

impl<'a> Sides<'a> {
    /// With a prompt that the row names; a response that repeats it is taken as the whole chat.
    fn new(
        prompt: Vec<Message<'a>>,
        mut chosen: Vec<Message<'a>>,
        mut rejected: Vec<Message<'a>>,
    ) -> Self {
        if !prompt.is_empty() {
            for side in [&mut chosen, &mut rejected] {
                if side.len() > prompt.len() && side.starts_with(&prompt) {
                    side.drain(..prompt.len());
                }
            }
        }
        Self {
            prompt,
            chosen,
            rejected,
            names: ("chosen", "rejected"),
        }
    }

    fn of_chats(chosen: Vec<Message<'a>>, rejected: Vec<Message<'a>>) -> Self {
        Self::new(Vec::new(), chosen, rejected)
    }

    fn add_system(&mut self, system: &Message<'a>) -> Result<(), Reject> {
        if self.prompt.is_empty() {
            with_system(&mut self.chosen, system)?;
            with_system(&mut self.rejected, system)
        } else {
            with_system(&mut self.prompt, system)
        }
    }

    fn check_responses(&self) -> Result<(), Reject> {
        check_response(self.chosen.last(), self.names.0)?;
        check_response(self.rejected.last(), self.names.1)
    }

    /// Move what the sides share, message by message, into the prompt, until the rest is the assistant's doing alone.
    fn part(&mut self) -> Result<(), Reject> {
        let named = !self.prompt.is_empty();
        if !(named && is_response(&self.chosen) && is_response(&self.rejected)) {
            let shared = self.shared();
            if !is_response(&self.chosen[shared..]) || !is_response(&self.rejected[shared..]) {
                return Err(self.diverging(shared));
            }
            self.prompt.extend(self.chosen.drain(..shared));
            self.rejected.drain(..shared);
        }
        if self.chosen == self.rejected {
            return Err(Reject {
                reason: "identical_pair",
                field: self.names.1.into(),
                value: shorten(self.rejected.last().map_or("", |message| &message.content)),
                rule: format!("{} and {} must differ", self.names.0, self.names.1),
                remedy: "drop the row",
            });
        }
        Ok(())
    }

    /// How many messages both sides begin with; each keeps one, and none begins with a tool's answer.
    fn shared(&self) -> usize {
        let both = self.chosen.iter().zip(&self.rejected);
        let same = both.take_while(|(a, b)| a == b).count();
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
            field: format!("{}[{shared}]", self.names.1),
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
