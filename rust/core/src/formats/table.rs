//! Every format, described once: detection, advice, `describe`, the cells of CSV, cutting and the docs read this table.

use std::sync::LazyLock;

use super::schema::{EVERYWHERE, Entry, Field, Form, Format, Kind, Role, Shape, form, may, needs};

use Role::{Chat as Whole, Chosen, Other, Pair, Prompt, Rejected, Response, Responses, Scores};
use Shape::{Chat, List, Message, Number, Text, Transcript, Turns, WholeChat};

const TEXT_OR_CHAT: &[Shape] = &[Text, Chat];

/// One row a format, in the order of `Format`.
pub static TABLE: [Entry; 11] = [
    Entry {
        format: Format::ShareGpt,
        name: "sharegpt",
        kind: Kind::Preferences,
        forms: &[form(&[
            needs("conversations", Prompt, &[Chat]),
            needs("chosen", Chosen, &[Chat, Message]),
            needs("rejected", Rejected, &[Chat, Message]),
        ])],
        compared: &["prompt", "instruction", "messages"],
        looks: "`conversations` of {from, value}; `chosen`, `rejected` {from, value}. LLaMA-Factory's `function_call` \
                and `observation` turns become tool calls and their answers",
        example: r#"{"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello."}, "rejected": {"from": "gpt", "value": "No."}}"#,
    },
    Entry {
        format: Format::Hh,
        name: "hh",
        kind: Kind::Preferences,
        forms: &[Form {
            fields: &[
                needs("chosen", Chosen, &[Transcript]).meaning("prompt and chosen response"),
                needs("rejected", Rejected, &[Transcript]).meaning("prompt and rejected response"),
            ],
            without: &["prompt"],
        }],
        compared: &["instruction", "conversations", "messages"],
        looks: r"`chosen`, `rejected` transcripts: `\n\nHuman: …\n\nAssistant: …`",
        example: r#"{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}"#,
    },
    Entry {
        format: Format::UltraFeedback,
        name: "ultrafeedback",
        kind: Kind::Preferences,
        forms: &[form(&[
            needs("prompt", Prompt, &[Text]).meaning("compared with the chats, which hold it"),
            needs("chosen", Chosen, &[WholeChat]).meaning("prompt and chosen response"),
            needs("rejected", Rejected, &[WholeChat]).meaning("prompt and rejected response"),
        ])],
        compared: &["instruction", "conversations", "messages"],
        looks: "`prompt` text; `chosen`, `rejected` lists of {role, content} that hold the prompt too",
        example: r#"{"prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}], "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No."}]}"#,
    },
    Entry {
        format: Format::Shp,
        name: "shp",
        kind: Kind::Preferences,
        forms: &[form(&[
            needs("history", Prompt, &[Text]),
            needs("human_ref_A", Chosen, &[Text]).meaning("chosen or rejected response"),
            needs("human_ref_B", Rejected, &[Text]).meaning("chosen or rejected response"),
            needs("labels", Other, &[]).meaning("1: A is chosen, 0: B"),
            may("score_A", Scores, &[Number]).meaning("score of A"),
            may("score_B", Scores, &[Number]).meaning("score of B"),
        ])],
        compared: &[
            "prompt",
            "instruction",
            "conversations",
            "messages",
            "chosen",
            "rejected",
        ],
        looks: "`history`, `human_ref_A`, `human_ref_B` texts; `labels` 1: A is preferred, 0: B; `score_A`, `score_B`",
        example: r#"{"history": "Hi", "human_ref_A": "No.", "human_ref_B": "Hello.", "labels": 0, "score_A": 1, "score_B": 2}"#,
    },
    Entry {
        format: Format::Alpaca,
        name: "alpaca",
        kind: Kind::Preferences,
        forms: &[
            form(&[
                QUESTION,
                INPUT,
                HISTORY,
                needs("chosen", Chosen, TEXT_OR_CHAT),
                needs("rejected", Rejected, TEXT_OR_CHAT),
            ]),
            form(&[QUESTION, needs("output", Pair, &[List])]),
        ],
        compared: &["prompt", "conversations", "messages"],
        looks: "`instruction`, optional `input` and `history` [[question, answer], …]; `chosen`, `rejected`, or \
                `output` [chosen, rejected]",
        example: r#"{"instruction": "Hi", "input": "", "chosen": "Hello.", "rejected": "No."}"#,
    },
    Entry {
        format: Format::Preference,
        name: "preference",
        kind: Kind::Preferences,
        forms: &[
            form(&[
                needs("prompt", Prompt, &[Text, Chat, Message]),
                needs("chosen", Chosen, TEXT_OR_CHAT),
                needs("rejected", Rejected, TEXT_OR_CHAT),
            ]),
            Form {
                fields: &[
                    needs("chosen", Chosen, &[Chat]),
                    needs("rejected", Rejected, &[Chat]),
                ],
                without: &["prompt", "conversations", "instruction"],
            },
        ],
        compared: &["instruction", "conversations", "messages"],
        looks: "`prompt`, `chosen`, `rejected`, each text or messages (TRL). Without `prompt`: whole chats that share \
                one (Skywork, RLHFlow)",
        example: r#"{"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}"#,
    },
    Entry {
        format: Format::Candidates,
        name: "candidates",
        kind: Kind::Candidates,
        forms: &[form(&[
            needs("prompt", Prompt, &[Text, Chat, Message]),
            needs("instruction", Prompt, &[Text]),
            needs("responses", Responses, &[List]),
            needs("completions", Responses, &[List]),
            needs("candidates", Responses, &[List]),
            may("scores", Scores, &[List]),
            may("ratings", Scores, &[List]),
        ])],
        compared: &["conversations", "messages"],
        looks: "`prompt` (or `instruction`); `responses`, `completions` or `candidates`: texts, messages, chats or \
                {response, overall_score}; `scores` or `ratings`",
        example: r#"{"prompt": "Hi", "responses": ["Hello.", "No."], "scores": [2, 1]}"#,
    },
    Entry {
        format: Format::CandidateRows,
        name: "candidate_rows",
        kind: Kind::Ranked,
        forms: &[form(&[
            needs("prompt", Prompt, &[Text, Chat, Message]),
            needs("response", Response, TEXT_OR_CHAT),
            needs("completion", Response, TEXT_OR_CHAT),
            needs("score", Scores, &[Number]),
            needs("rating", Scores, &[Number]),
            needs("sample", Scores, &[Number])
                .meaning("number among the samples of the prompt, which are not scored yet"),
        ])],
        compared: &["instruction", "conversations", "messages", "output"],
        looks: "one response a row: `prompt`, `response` or `completion`, `score` or `rating` (or, as `pyprefopt \
                generate` writes them, `sample`, its number among those of the prompt); only `read_candidates` \
                takes it, and makes one set of each prompt. To `prepare` and training such rows are `prompt_response`: \
                every one an SFT example, whatever its score (`--describe` says so)",
        example: r#"{"prompt": "Hi", "response": "Hello.", "score": 2}"#,
    },
    Entry {
        format: Format::Messages,
        name: "messages",
        kind: Kind::Instructions,
        forms: &[Form {
            fields: &[
                needs("messages", Whole, &[Chat]),
                needs("conversations", Whole, &[Chat]),
            ],
            without: &["chosen"],
        }],
        compared: &["prompt", "instruction", "response", "completion", "output"],
        looks: "`messages` or `conversations`, the last turn the assistant's (SFT)",
        example: r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}"#,
    },
    Entry {
        format: Format::PromptResponse,
        name: "prompt_response",
        kind: Kind::Instructions,
        forms: &[form(&[
            needs("prompt", Prompt, &[Text, Chat, Message]),
            needs("response", Response, TEXT_OR_CHAT),
            needs("completion", Response, TEXT_OR_CHAT),
        ])],
        compared: &["instruction", "conversations", "messages", "output"],
        looks: "`prompt`, `response` or `completion` (SFT). With a boolean `label` or `kto_tag` (KTO) only where the \
                format is named: such rows are no pairs, and as examples the responses labelled false would be \
                imitated too",
        example: r#"{"prompt": "Hi", "response": "Hello."}"#,
    },
    Entry {
        format: Format::Instruction,
        name: "instruction",
        kind: Kind::Instructions,
        forms: &[form(&[
            QUESTION,
            INPUT,
            HISTORY,
            needs("output", Response, &[Text]),
        ])],
        compared: &[
            "prompt",
            "conversations",
            "messages",
            "response",
            "completion",
        ],
        looks: "`instruction`, optional `input` and `history`, `output` (SFT)",
        example: r#"{"instruction": "Hi", "input": "", "output": "Hello."}"#,
    },
];

const QUESTION: Field = needs("instruction", Prompt, &[Text]);
const INPUT: Field = may("input", Other, &[Text]).meaning("prompt, after the instruction");
const HISTORY: Field = may("history", Other, &[Turns]).meaning("prompt, earlier turns");

impl Format {
    /// Its row of the table.
    pub fn entry(self) -> &'static Entry {
        &TABLE[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.entry().name
    }

    pub fn kind(self) -> Kind {
        self.entry().kind
    }

    /// The format of that name, or `None`.
    pub fn named(name: &str) -> Option<Self> {
        let found = TABLE.iter().find(|entry| entry.name == name)?;
        Some(found.format)
    }

    /// The names of the fields that the format takes; all others are the user's own.
    pub fn fields(self) -> &'static [&'static str] {
        static NAMES: LazyLock<Vec<Vec<&str>>> = LazyLock::new(|| {
            let names = |entry: &Entry| entry.fields().iter().map(|field| field.name).collect();
            TABLE.iter().map(names).collect()
        });
        &NAMES[self as usize]
    }
}

/// Whether a field of this name holds a text or chat in some format.
pub fn holds_text(name: &str) -> bool {
    let shapes = [Text, Chat, WholeChat, Message, Transcript];
    let forms = TABLE.iter().flat_map(|entry| entry.forms);
    let mut fields = forms.flat_map(|form| form.fields).chain(&EVERYWHERE);
    fields
        .any(|field| field.name == name && field.shapes.iter().any(|shape| shapes.contains(shape)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::detect;

    #[test]
    fn rows_stand_in_the_order_of_the_formats_and_their_examples_fit() {
        for (at, entry) in TABLE.iter().enumerate() {
            assert_eq!(entry.format as usize, at);
            let candidates: Vec<Format> = TABLE
                .iter()
                .filter(|other| other.kind == entry.kind)
                .map(|other| other.format)
                .collect();
            let row = entry.example.as_bytes();
            let found = detect([row].into_iter(), &candidates).format;
            assert_eq!(found, Some(entry.format), "{}", entry.name);
            assert!(entry.fields().iter().all(|field| !field.meaning.is_empty()));
        }
    }

    #[test]
    fn texts_are_known_by_their_fields() {
        for (name, text) in [
            ("chosen", true),
            ("output", true),
            ("scores", false),
            ("labels", false),
            ("mine", false),
        ] {
            assert_eq!(holds_text(name), text, "{name}");
        }
    }
}
