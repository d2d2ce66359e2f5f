//! A turn of the assistant that begins in the prompt and goes on in the response.

use std::borrow::Cow;

use crate::message::Message;
use crate::reject::Reject;
use crate::template::Place;
use crate::tokenize::input::{Response, Row};
use crate::tokenize::texts::Texts;

/// The row with that turn whole in each response, and what the prompt has of it; none where the prompt begins none.
pub fn whole_turns<'a>(row: &'a Row) -> Result<Option<(Row<'a>, &'a Message<'a>)>, Reject> {
    let Some((begun, before)) = row.prompt.split_last() else {
        return Ok(None);
    };
    if !begun.is_open() {
        return Ok(None);
    }
    if before.is_empty() {
        let rule =
            "a prompt must say something before the assistant's turn that the response goes on";
        let remedy = "give the user's turn, or drop the row";
        return Err(Reject::new(
            "prompt",
            &begun.content,
            "empty_prompt",
            rule,
            remedy,
        ));
    }
    let whole = |response: &'a Response| {
        let [message] = &*response.messages else {
            let rule = "a response that goes on the prompt's last turn must be one message of the assistant";
            let remedy = "join the begun turn to the response's first message, or drop the row";
            return Err(Reject::new(
                response.field,
                &begun.content,
                "template",
                rule,
                remedy,
            ));
        };
        Ok(Response {
            field: response.field,
            kind: response.kind,
            messages: Cow::Owned(vec![join(begun, message)]),
            complete: response.complete,
            score: response.score,
        })
    };
    let responses = row.responses.iter().map(whole).collect::<Result<_, _>>()?;
    let row = Row {
        row: row.row,
        prompt: Cow::Borrowed(before),
        responses,
        tools: row.tools,
        template_kwargs: row.template_kwargs,
    };
    Ok(Some((row, begun)))
}

fn join<'a>(begun: &Message<'a>, rest: &Message) -> Message<'a> {
    let mut whole = begun.clone();
    whole.set_open(false);
    whole.go_on(rest);
    whole
}

/// Move what the prompt has begun from the responses' texts into the prompt's.
pub fn part_turns(mut texts: Texts, row: &Row, begun: &Message) -> Result<Texts, Reject> {
    let mut shared: Option<String> = None;
    for ((text, parts), response) in texts.responses.iter_mut().zip(&row.responses) {
        let unfit = || {
            let rule = "the chat template must write the turn that the prompt begins as it stands, and go on with the \
                        response";
            let remedy = "pass another chat_template, or drop the row";
            Reject::new(response.field, &begun.content, "template", rule, remedy)
        };
        let content = parts
            .content
            .take()
            .filter(|content| content.breaks.is_empty());
        let content = content.ok_or_else(unfit)?;
        let start = content.range.start;
        let boundary = start + begun.content.len().saturating_sub(content.lead);
        let before = text
            .get(..boundary)
            .filter(|_| boundary < content.range.end);
        let before = before.ok_or_else(unfit)?;
        match &shared {
            Some(shared) if shared != before => return Err(unfit()),
            Some(_) => {}
            None => {
                shared = Some(before.to_owned());
                let prompt = &mut texts.prompt;
                prompt.bytes = boundary;
                prompt.parts.turns.push(prompt.generation);
                prompt.parts.stop = boundary;
                prompt.parts.content = Some(Place::new(start..boundary, content.lead));
            }
        }
        parts.first_turn = row.prompt.len() + 1;
        parts.scored = parts.scored.max(boundary);
        let lead = content.lead.saturating_sub(begun.content.len());
        parts.content = Some(Place::new(boundary..content.range.end, lead));
    }
    Ok(texts)
}
