//! Packed batches: what a group of responses costs, which groups share a batch, and the batch's arrays.

mod batch;
mod bins;
mod group;
mod plan;

pub use batch::{Batch, assemble, batch_tokens};
pub use bins::{Bins, MAX_CAPACITY, Misfit, best_fit_decreasing};
pub use group::{Group, Kind, Layout, Response, VALUES};
pub use plan::{pack_lengths, plan};
