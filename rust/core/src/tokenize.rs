//! Prompt and responses as token segments: rendered once, tokenized once, split by byte offsets.

mod budget;
mod chat;
mod columns;
mod coverage;
mod encoder;
mod fast;
mod identical;
mod input;
mod probe;
mod row;
mod texts;
mod tokens;

pub use columns::Columns;
pub use coverage::Coverage;
pub use encoder::{Encoded, Encoder, Mismatch, Shared, added_tokens};
pub use input::{Boundary, Limits, PromptOverflow, Response, Row, Tokenization};
pub use row::tokenize_row;
pub use texts::{FoundSpecial, Notes};
