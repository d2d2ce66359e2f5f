//! Any bytes are read as rows or refused, in any pieces: the same blocks however they arrive, no panic, all formats.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyprefopt_core::formats::{
    Blocks, Format, Layout, Limits, detect, lines, parse_instructions, parse_preferences,
};

const LIMITS: Limits = Limits { bytes: 64, rows: 3, row_bytes: 1 << 16 };

fuzz_target!(|data: &[u8]| {
    let Some((&piece, data)) = data.split_first() else {
        return;
    };
    let rows: Vec<&[u8]> = lines(data).into_iter().map(|(row, _)| row).collect();
    for format in Format::PREFERENCES {
        assert_eq!(parse_preferences(&rows, format).len(), rows.len());
    }
    for format in Format::INSTRUCTIONS {
        assert_eq!(parse_instructions(&rows, format).len(), rows.len());
    }
    detect(&rows, &Format::PREFERENCES);
    for layout in [Layout::Lines, Layout::Array, Layout::Csv { delimiter: b',' }] {
        let whole = blocks(layout, data, data.len());
        assert_eq!(whole, blocks(layout, data, usize::from(piece) % 16 + 1));
    }
});

/// The rows' texts as they come out of blocks, or the error.
fn blocks(layout: Layout, data: &[u8], piece: usize) -> Result<Vec<(Vec<u8>, u64, u64)>, String> {
    let mut blocks = Blocks::new(layout, LIMITS);
    let mut found = Vec::new();
    for part in data.chunks(piece.max(1)) {
        found.extend(blocks.push(part).map_err(|error| error.to_string())?);
    }
    found.extend(blocks.finish().map_err(|error| error.to_string())?);
    Ok(found.into_iter().map(|block| (block.data, block.rows, block.first_line)).collect())
}
