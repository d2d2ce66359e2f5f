//! Fields that several formats have: how their values are read.

use std::borrow::Cow;

use serde_json::Value;

use super::alternatives::stated;
use super::chat::spelled_list;
use super::json::{Fields, sound, text, without_nulls};
use super::message::{Message, Origin};
use super::raw::Raw;
use super::{Format, Reject};
use crate::reject::shorten;

/// The field's value, or a `missing_field` reject that shows the fields that are there.
pub fn required<'a>(fields: &Fields<'a>, name: &str) -> Result<Raw<'a>, Reject> {
    fields.get(name).ok_or_else(|| missing(fields, name))
}

pub fn missing(fields: &Fields, name: &str) -> Reject {
    Reject {
        reason: "missing_field",
        field: name.to_owned(),
        value: shorten(&fields.names()),
        rule: format!("{name} must be there and not null; the value shows the row's fields"),
        remedy: "fill or rename the field",
    }
}

/// What the named fields say, as a number.
pub fn number(fields: &Fields, names: &[&str]) -> Result<Option<f32>, Reject> {
    let read = |name: &str, raw: Raw| number_of(raw, name).map(|number| number + 0.0); // -0 is 0
    let found = stated(fields, names, read, |one, other| {
        one.total_cmp(other).is_eq()
    })?;
    Ok(found.map(|(_, number)| number))
}

/// A number, as it is or as text (of CSV, of decimals).
pub fn number_of(raw: Raw, field: &str) -> Result<f32, Reject> {
    let parsed = serde_json::from_str::<f64>(unquoted(raw));
    let finite = parsed.ok().map(|value| value as f32);
    finite
        .filter(|value| value.is_finite())
        .ok_or_else(|| Reject {
            value: shorten(unquoted(raw)), // an infinite one comes as text
            ..wrong_type("not_a_number", field, raw, "a finite number or null")
        })
}

pub fn flag(fields: &Fields, name: &str) -> Result<bool, Reject> {
    fields.get(name).map_or(Ok(true), |raw| truth(raw, name))
}

/// A boolean, in JSON or as text; null is true.
pub fn truth(raw: Raw<'_>, name: &str) -> Result<bool, Reject> {
    match unquoted(raw) {
        "true" | "True" | "TRUE" | "null" => Ok(true),
        "false" | "False" | "FALSE" => Ok(false),
        _ => Err(wrong_type(
            "not_a_boolean",
            name,
            raw,
            "true, false or null",
        )),
    }
}

/// A value without the quotes and spaces around it.
pub fn unquoted(raw: Raw<'_>) -> &str {
    raw.get().trim_matches('"').trim()
}

/// The lists that the named fields hold as text, each with its field's place in the row.
pub fn spelled_lists(fields: &Fields, names: &[&str]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, (name, raw)) in fields.0.iter().enumerate() {
        if !raw.get().starts_with('"') || !names.contains(&&**name) {
            continue;
        }
        if let Some(list) = text(*raw, "")
            .ok()
            .and_then(|words| spelled_list(&words).map(|list| list.get().to_owned()))
        {
            found.push((at, list));
        }
    }
    found
}

/// The row with lists in the place of the texts that spell them.
pub fn with_lists<'a>(fields: Fields<'a>, lists: &'a [(usize, String)]) -> Fields<'a> {
    let mut members = fields.0;
    for (at, list) in lists {
        if let (Some(member), Ok(list)) = (members.get_mut(*at), Raw::parse(list)) {
            member.1 = list;
        }
    }
    Fields(members)
}

/// What the named fields say, which hold JSON, as text or as it is; checked, so that the template can read it.
pub fn json_text<'a>(
    fields: &Fields<'a>,
    names: &[&str],
    origin: &Origin,
) -> Result<Option<Cow<'a, str>>, Reject> {
    let read = |name: &str, raw: Raw<'a>| json_of(raw, name, origin);
    let value = |json: &Option<Cow<str>>| {
        let parsed = json.as_deref().map(serde_json::from_str::<Value>);
        parsed.and_then(Result::ok)
    };
    let found = stated(fields, names, read, |one, other| value(one) == value(other))?;
    Ok(found.and_then(|(_, json)| json))
}

fn json_of<'a>(raw: Raw<'a>, name: &str, origin: &Origin) -> Result<Option<Cow<'a, str>>, Reject> {
    if !raw.get().starts_with('"') {
        sound(raw, name)?;
        check_kind(raw, name)?;
        return Ok(Some(if origin.has_null_members() {
            without_nulls(raw.get())
        } else {
            Cow::Borrowed(raw.get())
        }));
    }
    let quoted = text(raw, name)?;
    if quoted.trim().is_empty() {
        return Ok(None);
    }
    let inner = Raw::parse(&quoted)
        .map_err(|_| wrong_type("broken_json", name, raw, "JSON, or JSON as text"))?;
    sound(inner, name)?;
    check_kind(inner, name)?;
    Ok(Some(quoted))
}

/// Tools are a list, variables an object, or null.
fn check_kind(json: Raw, name: &str) -> Result<(), Reject> {
    let (sign, kind) = match name {
        "tools" => ('[', "a JSON list"),
        _ => ('{', "a JSON object"),
    };
    if json.get() != "null" && !json.get().starts_with(sign) {
        return Err(wrong_type("broken_json", name, json, kind));
    }
    match Fields::parse(json.get()) {
        Ok(fields) => fields.check_once(format_args!("{name}.")),
        Err(_) => Ok(()), // a list, or null
    }
}

/// The text of a field `system`, as a message.
pub fn system<'a>(fields: &Fields<'a>) -> Result<Option<Message<'a>>, Reject> {
    let Some(raw) = fields.get("system") else {
        return Ok(None);
    };
    let words = text(raw, "system")?;
    Ok((!words.is_empty()).then(|| Message::new("system", words)))
}

/// Put the system message before a chat; a chat that begins with one must begin with this one.
pub fn with_system<'a>(chat: &mut Vec<Message<'a>>, system: &Message<'a>) -> Result<(), Reject> {
    match chat.first() {
        Some(first) if is_system(first) && first.content.trim() == system.content.trim() => Ok(()),
        Some(first) if first.role == "system" => Err(Reject {
            reason: "two_systems",
            field: "system".into(),
            value: shorten(&system.content),
            rule:
                "the system messages of a row (field, prompt, chats) must not contradict each other"
                    .into(),
            remedy: "leave one of them",
        }),
        _ => {
            chat.insert(0, system.clone());
            Ok(())
        }
    }
}

pub fn is_system(message: &Message) -> bool {
    matches!(message.role, "system" | "developer")
}

fn wrong_type(reason: &'static str, name: &str, raw: Raw, what: &str) -> Reject {
    Reject {
        reason,
        field: name.to_owned(),
        value: shorten(raw.get()),
        rule: format!("{name} must be {what}"),
        remedy: "mend the field",
    }
}

/// The row's fields that the format does not take, as a JSON object, if they are to be carried.
pub fn others(fields: &Fields, format: Format, carry: bool) -> Result<Option<String>, Reject> {
    if carry {
        fields.others(format.fields())
    } else {
        Ok(None)
    }
}
