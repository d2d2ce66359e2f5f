//! Prompt and responses as token segments: rendered once, tokenized once, split by byte offsets.

mod chat;
mod encoder;
mod fast;
mod probe;
mod row;

pub use encoder::{Encoded, Encoder, Mismatch};
pub use row::{Limits, Reject, Response, Row, RowTokens, Segment, tokenize_row};
