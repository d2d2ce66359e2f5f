//! The engine against the reference: ids, offsets, sharing, proof.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const LINE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Letters that stand for the bytes, as the library gives them.
fn alphabet() -> Vec<char> {
    let mut letters: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
        .into_iter()
        .collect();
    letters.sort_unstable();
    letters
}

fn byte_level(pre_tokenizer: &Value, merges: &[&str]) -> Value {
    let tokens = alphabet()
        .into_iter()
        .map(String::from)
        .chain(merges.iter().map(|merge| merge.replace(' ', "")));
    let vocab: serde_json::Map<String, Value> = tokens
        .zip(0..)
        .map(|(token, id)| (token, json!(id)))
        .collect();
    let added = |content: &str, id: usize, normalized: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": normalized, "special": !normalized});
    let size = vocab.len();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null, "decoder": null,
        "added_tokens": [added("<e>", size, false), added("  ", size + 1, true)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": pre_tokenizer,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "vocab": vocab, "merges": merges},
    })
}

fn gpt2(merges: &[&str]) -> Value {
    byte_level(
        &json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
        merges,
    )
}

fn qwen2() -> Value {
    let split = json!({"type": "Split", "pattern": {"Regex": LINE}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    byte_level(
        &json!({"type": "Sequence", "pretokenizers": [split, bytes]}),
        MERGES,
    )
}

fn mistral() -> Value {
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = [
        "<unk>", "▁", "a", "b", "s", "n", "中", "▁a", "ab", "▁ab", "▁▁",
    ]
    .map(String::from);
    let vocab: serde_json::Map<String, Value> = bytes
        .chain(tokens)
        .zip(0..)
        .map(|(token, id)| (token, json!(id)))
        .collect();
    let mut file = byte_level(
        &json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
        &[],
    );
    file["normalizer"] = Value::Null;
    file["added_tokens"] = json!([]);
    file["model"] = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocab, "merges": ["▁ ▁", "a b", "▁ a", "▁ ab"]});
    file
}

const MERGES: &[&str] = &[
    "a b", "Ġ a", "Ġ ab", "ä ¸", "ä¸ Ń", "Ċ Ċ", "ab ab", "n '", "Ġ Ġ",
];

fn encoder(file: &Value) -> Encoder {
    let encoder = Encoder::new(file.to_string().as_bytes(), &[]).unwrap();
    assert_eq!((encoder.engine(), encoder.why()), ("fast", ""));
    encoder
}

fn reference(encoder: &Encoder, text: &str) -> Encoded {
    let mut out = Encoded::default();
    encoder.encode_reference(text, &mut out).unwrap();
    out
}

fn texts() -> impl Strategy<Value = String> {
    let parts = prop_oneof![
        "[abn '中\n\u{301}é.0-9<e>]{0,12}",
        "[ ab]{0,6}",
        Just("<e>".to_string()),
        Just("\n\nHuman: ab".to_string()),
        any::<String>(),
    ];
    prop::collection::vec(parts, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn ids_and_offsets_equal_the_reference(texts in prop::collection::vec(texts(), 1..4)) {
        for file in [gpt2(MERGES), qwen2(), mistral()] {
            let encoder = encoder(&file);
            let mut all = Encoded::default();
            for text in &texts {
                let expected = reference(&encoder, text);
                prop_assert_eq!(encoder.encode(text).unwrap(), expected.clone());
                let before = all.clone();
                encoder.encode_into(text, &mut all).unwrap();
                prop_assert_eq!(&all.ids[..before.ids.len()], &before.ids[..]);
                prop_assert_eq!(&all.offsets[before.offsets.len()..], &expected.offsets[..]);
                let mut ids = Vec::new();
                encoder.encode_ids(text, &mut ids).unwrap();
                prop_assert_eq!(ids, expected.ids);
            }
        }
    }

    #[test]
    fn what_is_shared_is_encoded_as_if_it_were_not(shared in texts(), ends in prop::collection::vec(texts(), 0..4), less in 0..4usize) {
        let whole: Vec<String> = ends.iter().map(|end| format!("{shared}{end}")).collect();
        let whole: Vec<&str> = whole.iter().map(String::as_str).collect();
        for file in [gpt2(MERGES), qwen2(), mistral()] {
            let encoder = encoder(&file);
            let expected: Vec<Encoded> = whole.iter().map(|text| reference(&encoder, text)).collect();
            let mut tokens = Shared::default();
            encoder.encode_sharing(shared.len().saturating_sub(less), &whole, &mut tokens).unwrap();
            prop_assert_eq!(joined(&tokens), expected);
        }
    }
}

fn joined(tokens: &Shared) -> Vec<Encoded> {
    let join = |rest: &Encoded| {
        let mut whole = tokens.prefix.clone();
        whole.ids.extend(&rest.ids);
        whole.offsets.extend(&rest.offsets);
        whole
    };
    tokens.rests.iter().map(join).collect()
}

#[test]
fn a_difference_is_found_and_the_reference_takes_over() {
    let (file, other) = (gpt2(MERGES).to_string(), gpt2(&["a b"]).to_string());
    let mut encoder = Encoder::new(file.as_bytes(), &[]).unwrap();
    encoder.reference = Reference::load(other.as_bytes(), &[]).unwrap();
    assert_eq!(encoder.prove(&["b", "n"]), None);
    let mismatch = encoder.prove(&["b", "ab ab"]).unwrap();
    assert_eq!((mismatch.text, mismatch.byte), (1, 2));
    assert_eq!(encoder.engine(), "tokenizers");
    assert!(
        encoder.why().contains("text 1, byte 2"),
        "{}",
        encoder.why()
    );
    assert_eq!(
        encoder.encode("ab ab").unwrap(),
        reference(&encoder, "ab ab")
    );
    assert_eq!(encoder.prove(&["ab ab"]), None);
}

#[test]
fn what_is_unknown_is_named() {
    let why = |change: &dyn Fn(&mut Value)| {
        let mut file = gpt2(MERGES);
        change(&mut file);
        let encoder = Encoder::new(file.to_string().as_bytes(), &[]).unwrap();
        assert_eq!(encoder.engine(), "tokenizers");
        encoder.why().to_string()
    };
    assert!(
        why(&|file| file["normalizer"] = json!({"type": "Lowercase"}))
            .contains("normalizer: \"Lowercase\"")
    );
    assert!(
        why(&|file| file["pre_tokenizer"]["add_prefix_space"] = json!(true))
            .contains("add_prefix_space")
    );
    assert!(why(&|file| file["pre_tokenizer"]["new_flag"] = json!(1)).contains("new_flag"));
    assert!(why(&|file| file["model"]["dropout"] = json!(0.1)).contains("dropout"));
    assert!(
        why(&|file| file["added_tokens"][0]["single_word"] = json!(true)).contains("single_word")
    );
}
