//! Kernels of pyprefopt's data path: plain functions on slices, no Python and no Arrow.

pub mod align;
pub mod error;
pub mod formats;
pub mod message;
pub mod pack;
pub mod parquet;
pub mod prepare;
pub mod reject;
pub mod rounding;
pub mod select;
pub mod template;
pub mod tokenize;
pub mod truncate;

pub use error::{Error, Result};
pub use reject::Reject;
