//! Rejects as an Arrow record batch.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow_schema::ArrowError;
use pyprefopt_core::Reject;

/// One line a reject.
pub fn reject_batch(rejects: &[(u64, Reject)]) -> Result<RecordBatch, ArrowError> {
    let column = |text: fn(&Reject) -> &str| -> ArrayRef {
        let texts = rejects.iter().map(|(_, reject)| text(reject));
        Arc::new(StringArray::from_iter_values(texts))
    };
    let rows = UInt64Array::from_iter_values(rejects.iter().map(|(row, _)| *row));
    RecordBatch::try_from_iter_with_nullable([
        ("row", Arc::new(rows) as ArrayRef, false),
        ("field", column(|reject| &reject.field), false),
        ("value", column(|reject| &reject.value), false),
        ("reason", column(|reject| reject.reason), false),
        ("rule", column(|reject| &reject.rule), false),
        ("remedy", column(|reject| reject.remedy), false),
    ])
}
