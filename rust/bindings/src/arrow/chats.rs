//! Chats as Arrow columns, read and written message by message.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::builder::LargeStringBuilder;
use arrow_array::{Array, ArrayRef, StructArray};
use arrow_schema::{ArrowError, DataType, Field, Fields};
use pyo3::PyResult;
use pyprefopt_core::message::Message;

use super::columns::{Strings, field, list_array, list_of, structs};
use super::lists::Lists;

/// A column of chats: list<struct{role, content, extra}>, `extra` optional.
pub struct Chats<'a> {
    lists: Lists<&'a ArrayRef>,
    role: Strings<'a>,
    content: Strings<'a>,
    extra: Option<Strings<'a>>,
}

impl<'a> Chats<'a> {
    pub fn new(name: &str, array: &'a dyn Array) -> PyResult<Self> {
        let lists = Lists::new(name, array)?;
        let structs = structs(name, array, lists.values)?;
        let extra = structs
            .column_by_name("extra")
            .map(|column| Strings::new("extra", column))
            .transpose()?;
        let role = Strings::new("role", field("role", structs)?)?;
        let content = Strings::new("content", field("content", structs)?)?;
        Ok(Self {
            lists,
            role,
            content,
            extra,
        })
    }

    pub fn get(&self, row: usize) -> Vec<Message<'a>> {
        let message = |index| Message {
            role: self.role.get(index).unwrap_or_default(),
            content: self.content.get(index).unwrap_or_default().into(),
            extra: self
                .extra
                .and_then(|extra| extra.get(index))
                .map(Cow::Borrowed),
        };
        self.lists.range(row).map(message).collect()
    }
}

/// Builds list<struct{role, content, extra}>, or lists of these.
#[derive(Default)]
pub struct ChatColumn {
    role: LargeStringBuilder,
    content: LargeStringBuilder,
    extra: LargeStringBuilder,
    lengths: Vec<usize>,
}

impl ChatColumn {
    pub fn push(&mut self, chat: &[Message]) {
        self.lengths.push(chat.len());
        for message in chat {
            self.role.append_value(message.role);
            self.content.append_value(&message.content);
            self.extra.append_option(message.extra.as_deref());
        }
    }

    pub fn finish(mut self) -> Result<ArrayRef, ArrowError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.role.finish()),
            Arc::new(self.content.finish()),
            Arc::new(self.extra.finish()),
        ];
        let messages = StructArray::try_new(message_fields(), columns, None)?;
        Ok(list_array(Arc::new(messages), self.lengths.into_iter()))
    }

    /// The chats grouped into lists of the given lengths.
    pub fn finish_lists(self, lengths: Vec<usize>) -> Result<ArrayRef, ArrowError> {
        Ok(list_array(self.finish()?, lengths.into_iter()))
    }
}

/// The type of a column of chats.
pub fn chat_type() -> DataType {
    list_of(DataType::Struct(message_fields()))
}

fn message_fields() -> Fields {
    let text = |name| Field::new(name, DataType::LargeUtf8, true);
    Fields::from(vec![text("role"), text("content"), text("extra")])
}
