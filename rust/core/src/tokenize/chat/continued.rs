//! A turn of the assistant that begins in the prompt and goes on in the response.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::message::Message;
use crate::reject::Reject;
use crate::template::Place;
use crate::tokenize::input::{Response, Row};
use crate::tokenize::texts::{Parts, Texts};

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

fn join<'a>(begun: &Message<'a>, rest: &Message<'a>) -> Message<'a> {
    let keys = |message: &Message| {
        let parsed = message.extra.as_deref().map(serde_json::from_str);
        parsed.and_then(Result::ok).unwrap_or_else(Map::new)
    };
    let mut both: Map<String, Value> = keys(begun);
    both.shift_remove("prefix");
    both.extend(keys(rest));
    Message {
        role: begun.role,
        content: Cow::Owned(format!("{}{}", begun.content, rest.content)),
        extra: (!both.is_empty()).then(|| Cow::Owned(Value::Object(both).to_string())),
    }
}

/// Move what the prompt has begun from the responses' texts into the prompt's.
pub fn part_turns(texts: Texts, row: &Row, begun: &Message) -> Result<Texts, Reject> {
    let Texts {
        mut prompt,
        mut responses,
    } = texts;
    let mut shared: Option<String> = None;
    for ((text, parts), response) in responses.iter_mut().zip(&row.responses) {
        let unfit = || {
            let rule = "the chat template must write the turn that the prompt begins as it stands, and go on with the \
                        response";
            let remedy = "pass another chat_template, or drop the row";
            Reject::new(response.field, &begun.content, "template", rule, remedy)
        };
        let content = parts.content.take().ok_or_else(unfit)?;
        let start = content.range.start;
        let boundary = start + begun.content.len().saturating_sub(content.lead);
        let rest = (boundary < content.range.end)
            .then(|| text.get(..boundary))
            .flatten();
        let before = rest.ok_or_else(unfit)?;
        if shared.as_ref().is_some_and(|shared| shared != before) {
            return Err(unfit());
        }
        if shared.is_none() {
            shared = Some(before.to_owned());
            prompt.parts.turns.push(prompt.generation);
            prompt.bytes = boundary;
            prompt.parts = Parts {
                content: Some(Place {
                    range: start..boundary,
                    lead: content.lead,
                }),
                stop: boundary,
                turns: std::mem::take(&mut prompt.parts.turns),
                ..Parts::default()
            };
        }
        parts.first_turn = row.prompt.len() + 1;
        parts.content = Some(Place {
            range: boundary..content.range.end,
            lead: content.lead.saturating_sub(begun.content.len()),
        });
    }
    Ok(Texts { prompt, responses })
}
