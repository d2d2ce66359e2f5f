//! Arrow columns into what the kernels take, and what they give into Arrow columns.

mod chats;
mod columns;
mod lists;
mod sound;

pub use chats::{ChatColumn, Chats, chat_type};
pub use columns::{Strings, bitmap, chunked, field, list_array, list_of, structs};
pub use lists::{Elements, ListColumn, Lists};
pub use sound::{check_offsets, check_views};
