//! Truncation: how much of a response is kept, counted in content tokens, characters, words or sentences.

mod cut;
mod positions;
mod text;
mod unit;

pub use cut::{Cut, Keep, Kept};
pub use positions::{count_content, kept_positions};
pub use text::{Counter, kept_bytes, kept_text};
pub use unit::Unit;
