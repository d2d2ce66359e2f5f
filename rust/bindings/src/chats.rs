//! Chats as Arrow columns, written message by message.

use std::sync::Arc;

use arrow_array::builder::LargeStringBuilder;
use arrow_array::{ArrayRef, LargeListArray, StructArray};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{ArrowError, DataType, Field, Fields};
use pyprefopt_core::formats::Message;

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
        lists(Arc::new(messages), self.lengths)
    }

    /// The chats grouped into lists of the given lengths.
    pub fn finish_lists(self, lengths: Vec<usize>) -> Result<ArrayRef, ArrowError> {
        lists(self.finish()?, lengths)
    }
}

/// The type of a column of chats.
pub fn chat_type() -> DataType {
    list_type(DataType::Struct(message_fields()))
}

pub fn list_type(item: DataType) -> DataType {
    DataType::LargeList(Arc::new(Field::new("item", item, true)))
}

fn message_fields() -> Fields {
    let text = |name| Field::new(name, DataType::LargeUtf8, true);
    Fields::from(vec![text("role"), text("content"), text("extra")])
}

fn lists(values: ArrayRef, lengths: Vec<usize>) -> Result<ArrayRef, ArrowError> {
    let item = Arc::new(Field::new("item", values.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(LargeListArray::try_new(
        item, offsets, values, None,
    )?))
}
