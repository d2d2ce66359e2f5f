//! Any bytes are read as rows or refused, in any pieces: the same blocks however they arrive, no panic, all formats.

use pyprefopt_core::Error;
use pyprefopt_core::formats::{
    Blocks, Format, Layout, Limits, Rows, TABLE, detect, lines, parse_candidates,
    parse_instruction, parse_pair,
};

const LIMITS: Limits = Limits {
    bytes: 64,
    rows: 3,
    row_bytes: 1 << 16,
};

pub fn check(data: &[u8]) {
    let Some((&piece, data)) = data.split_first() else {
        return;
    };
    let rows: Vec<&[u8]> = lines(data).into_iter().map(|(row, _)| row).collect();
    for (&row, format) in rows
        .iter()
        .flat_map(|row| formats().map(move |format| (row, format)))
    {
        for source in [Rows::Json, Rows::Typed] {
            let carry = piece & 1 > 0;
            let _ = parse_pair(row, format, source, carry, |pair, _| pair.prompt.len());
            let _ = parse_candidates(row, source, carry, |found, _| found.responses.len());
            let _ = parse_instruction(row, format, source, carry, |found, _| found.prompt.len());
        }
    }
    detect(rows.into_iter(), &formats().collect::<Vec<_>>());
    for layout in [
        Layout::Lines,
        Layout::Array,
        Layout::Csv { delimiter: b',' },
    ] {
        let whole = blocks(layout, data, data.len());
        assert_eq!(whole, blocks(layout, data, usize::from(piece) % 16 + 1));
    }
}

fn formats() -> impl Iterator<Item = Format> {
    TABLE.iter().map(|entry| entry.format)
}

/// The rows' texts as they come out of blocks, or the error up to what it quotes: as much as had arrived.
fn blocks(layout: Layout, data: &[u8], piece: usize) -> Result<Vec<(Vec<u8>, u64, u64)>, String> {
    let mut blocks = Blocks::new(layout, LIMITS);
    let mut found = Vec::new();
    for part in data.chunks(piece.max(1)) {
        found.extend(blocks.push(part).map_err(|error| rule(&error))?);
    }
    found.extend(blocks.finish().map_err(|error| rule(&error))?);
    Ok(found
        .into_iter()
        .map(|block| (block.data, block.rows, block.first_line))
        .collect())
}

fn rule(error: &Error) -> String {
    let text = error.to_string();
    text.split(" (").next().unwrap_or_default().to_owned()
}
