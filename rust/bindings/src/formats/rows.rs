//! Parsed rows of each kind as Arrow record batches.

use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, Float32Builder, LargeListBuilder, StringBuilder};
use arrow_array::{ArrayRef, BooleanArray, Float32Array, RecordBatch, UInt64Array};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use pyprefopt_core::Reject;
use pyprefopt_core::formats::{
    Format, Kind, Rows, parse_candidates, parse_instruction, parse_pair,
};

use crate::arrow::{ChatColumn, chat_type, list_of};

/// Rows of one chunk, bad ones with their numbers, and a JSON line a used row of its further fields.
pub struct Chunk {
    pub batch: RecordBatch,
    pub rejects: Vec<(u64, Reject)>,
    pub others: Vec<u8>,
}

/// How to parse.
#[derive(Clone, Copy)]
pub struct Plan {
    pub format: Format,
    pub rows: Rows,
    pub carry: bool,
}

/// The columns that rows of this format become.
pub fn schema(format: Format) -> SchemaRef {
    let column = |name: &str, data_type, nullable| Field::new(name, data_type, nullable);
    let mut fields = vec![
        column("row", DataType::UInt64, false),
        column("prompt", chat_type(), false),
    ];
    match format.kind() {
        Kind::Candidates => fields.extend([
            column("responses", list_of(chat_type()), false),
            column("scores", list_of(DataType::Float32), true),
            column("responses_complete", list_of(DataType::Boolean), true),
        ]),
        Kind::Instructions => {
            fields.push(column("response", chat_type(), false));
        }
        Kind::Ranked => fields.extend([
            column("response", chat_type(), false),
            column("score", DataType::Float32, true),
        ]),
        Kind::Preferences => fields.extend([
            column("chosen", chat_type(), false),
            column("rejected", chat_type(), false),
            column("chosen_complete", DataType::Boolean, false),
            column("rejected_complete", DataType::Boolean, false),
            column("score_chosen", DataType::Float32, true),
            column("score_rejected", DataType::Float32, true),
        ]),
    }
    fields.push(column("tools", DataType::Utf8, true));
    fields.push(column("template_kwargs", DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

/// Parse rows, the first of which has the number `first`.
pub fn parse(rows: &[&[u8]], first: u64, plan: Plan) -> Result<Chunk, ArrowError> {
    let mut books = Books::default();
    let columns = match plan.format.kind() {
        Kind::Candidates => candidates(rows, first, plan, &mut books)?,
        Kind::Instructions | Kind::Ranked => instructions(rows, first, plan, &mut books)?,
        Kind::Preferences => pairs(rows, first, plan, &mut books)?,
    };
    let mut all: Vec<ArrayRef> = vec![Arc::new(UInt64Array::from(books.used))];
    all.extend(columns);
    all.push(Arc::new(books.tools.finish()));
    all.push(Arc::new(books.template_kwargs.finish()));
    Ok(Chunk {
        batch: RecordBatch::try_new(schema(plan.format), all)?,
        rejects: books.rejects,
        others: books.others,
    })
}

/// What every kind of row has.
#[derive(Default)]
struct Books {
    used: Vec<u64>,
    rejects: Vec<(u64, Reject)>,
    others: Vec<u8>,
    tools: StringBuilder,
    template_kwargs: StringBuilder,
}

impl Books {
    fn enter(
        &mut self,
        row: u64,
        tools: Option<&str>,
        kwargs: Option<&str>,
        others: Option<&str>,
        carry: bool,
    ) {
        self.used.push(row);
        self.tools.append_option(tools);
        self.template_kwargs.append_option(kwargs);
        if carry {
            self.others
                .extend_from_slice(others.unwrap_or("{}").as_bytes());
            self.others.push(b'\n');
        }
    }

    fn settle(&mut self, row: u64, outcome: Result<(), Reject>) {
        if let Err(reject) = outcome {
            self.rejects.push((row, reject));
        }
    }
}

fn pairs(
    rows: &[&[u8]],
    first: u64,
    plan: Plan,
    books: &mut Books,
) -> Result<Vec<ArrayRef>, ArrowError> {
    let mut chats: [ChatColumn; 3] = Default::default();
    let (mut flags, mut scores) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    for (row, text) in (first..).zip(rows) {
        let outcome = parse_pair(text, plan.format, plan.rows, plan.carry, |pair, others| {
            chats[0].push(&pair.prompt);
            chats[1].push(&pair.chosen);
            chats[2].push(&pair.rejected);
            flags[0].push(pair.chosen_complete);
            flags[1].push(pair.rejected_complete);
            scores[0].push(pair.score_chosen);
            scores[1].push(pair.score_rejected);
            books.enter(
                row,
                pair.tools.as_deref(),
                pair.template_kwargs.as_deref(),
                others,
                plan.carry,
            );
        });
        books.settle(row, outcome);
    }
    let mut columns = chats
        .into_iter()
        .map(ChatColumn::finish)
        .collect::<Result<Vec<_>, _>>()?;
    columns.extend(flags.map(|flags| Arc::new(BooleanArray::from(flags)) as ArrayRef));
    columns.extend(scores.map(|scores| Arc::new(Float32Array::from(scores)) as ArrayRef));
    Ok(columns)
}

fn candidates(
    rows: &[&[u8]],
    first: u64,
    plan: Plan,
    books: &mut Books,
) -> Result<Vec<ArrayRef>, ArrowError> {
    let (mut prompts, mut responses, mut counts) =
        (ChatColumn::default(), ChatColumn::default(), Vec::new());
    let item = Field::new("item", DataType::Float32, true);
    let mut scores = LargeListBuilder::new(Float32Builder::new()).with_field(item);
    let item = Field::new("item", DataType::Boolean, true);
    let mut complete = LargeListBuilder::new(BooleanBuilder::new()).with_field(item);
    for (row, text) in (first..).zip(rows) {
        let outcome = parse_candidates(text, plan.rows, plan.carry, |set, others| {
            prompts.push(&set.prompt);
            set.responses
                .iter()
                .for_each(|response| responses.push(response));
            counts.push(set.responses.len());
            scores.append_option(set.scores.as_ref().map(|scores| scores.iter().copied()));
            let flags = set.complete.as_ref();
            complete.append_option(flags.map(|flags| flags.iter().copied().map(Some)));
            books.enter(
                row,
                set.tools.as_deref(),
                set.template_kwargs.as_deref(),
                others,
                plan.carry,
            );
        });
        books.settle(row, outcome);
    }
    Ok(vec![
        prompts.finish()?,
        responses.finish_lists(counts)?,
        Arc::new(scores.finish()),
        Arc::new(complete.finish()),
    ])
}

fn instructions(
    rows: &[&[u8]],
    first: u64,
    plan: Plan,
    books: &mut Books,
) -> Result<Vec<ArrayRef>, ArrowError> {
    let (mut prompts, mut responses) = (ChatColumn::default(), ChatColumn::default());
    let mut scores = Vec::new();
    for (row, text) in (first..).zip(rows) {
        let outcome =
            parse_instruction(text, plan.format, plan.rows, plan.carry, |found, others| {
                prompts.push(&found.prompt);
                responses.push(std::slice::from_ref(&found.response));
                scores.push(found.score);
                books.enter(
                    row,
                    found.tools.as_deref(),
                    found.template_kwargs.as_deref(),
                    others,
                    plan.carry,
                );
            });
        books.settle(row, outcome);
    }
    let mut columns = vec![prompts.finish()?, responses.finish()?];
    if plan.format.kind() == Kind::Ranked {
        columns.push(Arc::new(Float32Array::from(scores)));
    }
    Ok(columns)
}
