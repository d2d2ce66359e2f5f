//! Files that are cut, from bytes to bytes.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::truncate::{Counter, Cut, Unit};

fn words(count: usize) -> Shortening<'static> {
    Shortening {
        counter: Counter::Unit(Unit::Words),
        cut: Cut::new(None, Some(count), "ceil").expect("valid"),
        of_shortest: false,
        ended: false,
    }
}

fn cutter(format: &str, layout: Layout, written: Written) -> Cutter {
    Cutter::new(Format::named(format), None, layout, written, 1 << 20)
}

fn run(cutter: &mut Cutter, text: &str, count: usize) -> Result<String> {
    let mut out = Vec::new();
    for piece in text.as_bytes().chunks(7) {
        out.extend(cutter.push(piece, &words(count))?);
    }
    out.extend(cutter.finish(&words(count))?);
    Ok(String::from_utf8(out).expect("UTF-8"))
}

fn lines(format: &str, text: &str, count: usize) -> Result<String> {
    run(
        &mut cutter(format, Layout::Lines, Written::Lines),
        text,
        count,
    )
}

fn error(outcome: Result<String>) -> String {
    outcome.expect_err("an error").to_string()
}

const ADDED: &str =
    r#", "chosen_cut": 1, "chosen_complete": false, "rejected_cut": 0, "rejected_complete": true"#;

#[test]
fn what_is_not_cut_stays_as_it_was_written() {
    let rows = [
        (
            r#"{"prompt": "p", "chosen": "a b c", "rejected": "ü v", "id": 123456789012345678901234567890, "x": 1.10}"#,
            ("a b c", "a b"),
        ),
        (
            r#"{"n":1,"prompt":"p","rejected":"d e","chosen":"\u00fc f g","tags":["a",1,null,1e400]}"#,
            (r"\u00fc f g", r"\u00fc f"),
        ),
        (
            r#"{"chosen": "one\/ two, three", "x": "text", "rejected": "a", "prompt": "p", "y": 1, "y": 2}  "#,
            (r"one\/ two, three", "one/ two"),
        ),
    ];
    for (row, (before, after)) in rows {
        let edited = row.replace(before, after);
        let close = edited.rfind('}').expect("a brace");
        let expected = format!("{}{ADDED}{}\n", &edited[..close], &edited[close..]);
        assert_eq!(lines("preference", row, 2), Ok(expected));
    }
}

#[test]
fn responses_stand_where_the_format_says() {
    let cut = |format: &str, row: Value, count| {
        let text = lines(format, &row.to_string(), count).expect("a row");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let row = json!({"history": "q", "human_ref_A": "d e", "human_ref_B": "a b c", "labels": 0});
    let row = cut("shp", row, 1);
    assert_eq!(
        (&row["human_ref_A"], &row["human_ref_B"]),
        (&json!("d"), &json!("a"))
    );
    assert_eq!(
        (&row["chosen_cut"], &row["rejected_cut"]),
        (&json!(2), &json!(1))
    );
    let row = cut(
        "alpaca",
        json!({"instruction": "q", "output": ["a b c", "d e"]}),
        1,
    );
    assert_eq!(
        (&row["output"], &row["chosen_cut"]),
        (&json!(["a", "d"]), &json!(2))
    );
    let turns = "\n\nHuman: x y\n\nAssistant: k l\n\nHuman: q\n\nAssistant:";
    let row = json!({"chosen": format!("{turns} a b c"), "rejected": format!("{turns}d e")});
    let row = cut("hh", row, 1);
    assert_eq!(row["chosen"], json!(format!("{turns} a")));
    assert_eq!(row["rejected"], json!(format!("{turns}d")));
    let parts = json!([{"type": "text", "text": "a b"}, {"type": "text", "text": " c d"}]);
    let chat =
        json!([{"role": "user", "content": "q r s"}, {"role": "assistant", "content": parts}]);
    let call = json!([{"from": "function_call", "value": "{}"}]);
    let row = cut(
        "preference",
        json!({"prompt": "p", "chosen": chat, "rejected": call}),
        3,
    );
    assert_eq!(row["chosen"][1]["content"][1]["text"], json!(" c"));
    assert_eq!((&row["rejected"], &row["rejected_cut"]), (&call, &json!(0)));
    let row = json!({"prompt": "q", "responses": ["a b c", {"text": "d e f", "score": 1.0}, null]});
    let row = cut("candidates", row, 2);
    assert_eq!(
        row["responses"],
        json!(["a b", {"text": "d e", "score": 1.0}, null])
    );
    assert_eq!(row["responses_cut"], json!([1, 1, 0]));
    assert_eq!(row["responses_complete"], json!([false, false, true]));
    assert_eq!(cut("candidates", row, 1)["responses_cut"], json!([2, 2, 0]));
}

#[test]
fn records_keep_their_other_cells() {
    let csv = |delimiter| (Layout::Records { delimiter }, Written::Csv { delimiter });
    let (layout, written) = csv(b',');
    let text = "\u{feff}prompt,chosen,rejected\r\nq,\"a b \"\"c\"\"\",\"d\ne\"\r\n\r\n";
    let cut = run(&mut cutter("preference", layout, written), text, 2);
    let head = "prompt,chosen,rejected,chosen_cut,chosen_complete,rejected_cut,rejected_complete\n";
    assert_eq!(cut, Ok(format!("{head}q,a b,\"d\ne\",1,false,0,true\n")));
    let (layout, written) = csv(b'\t');
    let text = "prompt\tresponses\tscores\nq\t\"[\"\"a b c\"\", \"\"d\"\"]\"\t[1, 2]\n";
    let once = run(&mut cutter("candidates", layout, written), text, 2).expect("a row");
    let twice = run(&mut cutter("candidates", layout, written), &once, 1).expect("a row");
    assert!(
        twice.ends_with("q\t\"[\"\"a\"\", \"\"d\"\"]\"\t[1, 2]\t[2, 0]\t[false, true]\n"),
        "{twice}"
    );
    let (layout, written) = csv(b',');
    let text = "prompt,chosen,rejected\n\nq,\"a\nb\",c\nq,a\n";
    let what = error(run(&mut cutter("preference", layout, written), text, 2));
    assert!(
        what.starts_with(", line 5: a record must have 3 cells as the header, got 2;"),
        "{what}"
    );
}

#[test]
fn bytes_that_are_not_utf8_are_named() {
    let layout = Layout::Records { delimiter: b',' };
    let mut cutter = cutter("preference", layout, Written::Csv { delimiter: b',' });
    let outcome = cutter.push(
        b"prompt,chosen,rejected\nq,a,b\nq,\"a\ncaf\xe9\",b\n",
        &words(1),
    );
    let what = outcome.expect_err("an error").to_string();
    assert!(
        what.starts_with(", line 4: byte 3 of the line (0xe9) is not UTF-8; convert"),
        "{what}"
    );
}

#[test]
fn arrays_and_marks() {
    let row = r#"{"prompt": "q", "chosen": "a b", "rejected": "c"}"#;
    let text = format!("\u{feff}[{row},\n{row}]");
    let mut array = cutter("preference", Layout::Array, Written::Array);
    let cut = run(&mut array, &text, 1).expect("rows");
    let rows: Vec<Value> = serde_json::from_str(&cut).expect("JSON");
    assert_eq!((rows.len(), array.rows()), (2, 2));
    assert_eq!(rows[1]["chosen"], json!("a"));
    let text = format!("\u{feff}{row}\r\n\r\n{row}");
    let cut = lines("preference", &text, 1).expect("rows");
    assert!(
        cut.starts_with("\u{feff}{\"prompt\"") && cut.contains("}\r\n{") && cut.ends_with("}\n")
    );
}

#[test]
fn pairs_that_the_cut_makes_the_same_are_counted() {
    let same = |format: &str, rows: &[Value]| {
        let mut made = cutter(format, Layout::Lines, Written::Lines);
        let text: Vec<String> = rows.iter().map(Value::to_string).collect();
        run(&mut made, &text.join("\n"), 1).expect("rows");
        made.same()
    };
    let chat = |call: &str| json!([{"role": "tool", "content": call}, {"role": "assistant", "content": "a b"}]);
    let rows = [
        json!({"prompt": "q", "chosen": "a b", "rejected": "a c"}),
        json!({"prompt": "q", "chosen": "a b", "rejected": "c"}),
        json!({"prompt": "q", "chosen": "a", "rejected": "a"}),
        json!({"prompt": "q", "chosen": chat("1"), "rejected": chat("2")}),
    ];
    assert_eq!(same("preference", &rows), 1);
    assert_eq!(
        same(
            "alpaca",
            &[json!({"instruction": "q", "output": ["a b", "a c"]})]
        ),
        1
    );
    let row = json!({"history": "q", "human_ref_A": "a b", "human_ref_B": "a c", "labels": 1});
    assert_eq!(same("shp", &[row]), 1);
}

#[test]
fn rows_that_cannot_be_cut_are_named() {
    let good = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
    let deep = format!(
        r#"{{"prompt": "q", "chosen": "a", "x": {}{}}}"#,
        "[".repeat(9999),
        "]".repeat(9999)
    );
    for (format, row, what) in [
        (
            "preference",
            r#"{"chosen": 5}"#,
            "field 'chosen' must hold text or messages, got 5; mend the row, or leave it out",
        ),
        ("preference", r#"{"a": "#, "broken JSON: EOF while parsing"),
        (
            "preference",
            &deep,
            "a row is nested too deep; flatten the value",
        ),
        (
            "preference",
            r#"{"chosen": [["a"]]}"#,
            "field 'chosen' must be a text, or a list of messages {role, content}",
        ),
        (
            "preference",
            "[1]",
            "broken JSON: a row must be an object {…}; mend the line",
        ),
        (
            "preference",
            r#"{"chosen": "a", "chosen_cut": "x"}"#,
            "field 'chosen_cut' must be what an earlier cut wrote",
        ),
        (
            "preference",
            r#"{"chosen": "a", "chosen_cut": [1, 2]}"#,
            "field 'chosen_cut' must have 1 entries",
        ),
        (
            "preference",
            r#"{"chosen": {"role": "assistant", "text": "a"}}"#,
            "field 'chosen' must hold messages {role, content} or",
        ),
        (
            "shp",
            r#"{"human_ref_A": "a", "labels": 2}"#,
            "field 'labels' must be 1 (A is preferred) or 0, got '2'",
        ),
        (
            "alpaca",
            r#"{"output": ["a"]}"#,
            "field 'output' must be a list of two, [chosen, rejected]",
        ),
    ] {
        let found = error(lines(
            format,
            &format!("{good}\n\n{row}")
                .replace(good, if format == "preference" { good } else { "" }),
            1,
        ));
        let place = ", line 3: ";
        assert!(found.starts_with(&format!("{place}{what}")), "{found}");
    }
    let found = error(lines("preference", r#"{"chosen": "\ud800"}"#, 1));
    assert!(
        found.starts_with(", line 1, field 'chosen': half a surrogate pair"),
        "{found}"
    );
    let named = |name: &str| {
        let names = Some(vec![name.to_owned()]);
        Cutter::new(None, names, Layout::Lines, Written::Lines, 1 << 20)
    };
    let found = error(run(&mut named("a"), r#"{"a": "\n\nHuman: a"}"#, 1));
    assert!(
        found.contains("column 'a' holds transcripts (Human: …)"),
        "{found}"
    );
    let mut absent = named("answr");
    run(&mut absent, r#"{"answer": "a"}"#, 1).expect("rows");
    assert_eq!(absent.missing(), Some("answr"));
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a \"\\\\é\n]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec(("[a-c\"é]{0,2}", inner), 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever stands beside the responses of a row stays, in its place.
    #[test]
    fn everything_else_stays(
        before in prop::collection::vec(("[x-z\"é]{1,2}", value()), 0..3),
        chosen in "[ab é\"\\\\,\n]{0,12}",
        count in 1usize..4,
        csv in any::<bool>(),
    ) {
        let mut row = serde_json::Map::new();
        row.extend(before);
        row.insert("prompt".into(), json!("q"));
        row.insert("chosen".into(), json!(format!("w {chosen}")));
        row.insert("rejected".into(), json!("other words"));
        let whole = format!("w {chosen}");
        let kept = kept_words(&whole, count);
        let mut expected = row.clone();
        expected["chosen"] = json!(kept);
        expected["rejected"] = json!(kept_words("other words", count));
        if csv {
            let cells = |row: &serde_json::Map<String, Value>| {
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                row.values().map(text).collect::<Vec<_>>()
            };
            let names: Vec<String> = row.keys().cloned().collect();
            let (layout, written) = (Layout::Records { delimiter: b',' }, Written::Csv { delimiter: b',' });
            let text = format!("{}\n{}\n", record(&names, b','), record(&cells(&row), b','));
            let cut = run(&mut cutter("preference", layout, written), &text, count).expect("a row");
            let start = format!("{},chosen_cut", record(&names, b','));
            prop_assert!(cut.starts_with(&start));
            let expected = format!("\n{},", record(&cells(&expected), b','));
            prop_assert!(cut.contains(&expected), "{} {}", cut, expected);
        } else {
            let text = lines("preference", &Value::Object(row).to_string(), count).expect("a row");
            let mut found: serde_json::Map<String, Value> = serde_json::from_str(&text).expect("JSON");
            for name in ["chosen_cut", "chosen_complete", "rejected_cut", "rejected_complete"] {
                prop_assert!(found.shift_remove(name).is_some());
            }
            let names: Vec<&String> = found.keys().collect();
            prop_assert_eq!(names, expected.keys().collect::<Vec<_>>());
            prop_assert_eq!(&found, &expected);
        }
    }
}

fn kept_words(text: &str, count: usize) -> &str {
    let cut = Cut::new(None, Some(count), "ceil").expect("valid");
    &text[..crate::truncate::kept_text(text, Unit::Words, cut, None).kept]
}

/// The ways in which a row says the same pair: a prompt, and two answers after it.
#[allow(clippy::too_many_lines)] // a list
fn forms(first: &str, second: &str) -> Vec<(&'static str, Value)> {
    let user = json!({"role": "user", "content": "Q"});
    let system = json!({"role": "system", "content": "S"});
    let turn = |content: Value| json!({"role": "assistant", "content": content});
    let said = |text: &str| json!({"from": "gpt", "value": text, "id": "x"});
    let parts = |text: &str| {
        let at = text.char_indices().nth(3).map_or(text.len(), |(at, _)| at);
        let part = |text: &str| json!({"type": "text", "text": text});
        json!([part(&text[..at]), {"type": "text", "text": null}, part(&text[at..])])
    };
    let whole = |text: &str| json!([system, user, turn(text.into())]);
    let spelled = |chat: Value| Value::from(chat.to_string());
    let pretty = |chat: Value| Value::from(format!(" {chat:#}\n"));
    let marked = "\n\nHuman: Q\n\nAssistant: a b\n\nHuman: R\n\nAssistant:";
    let pair = |prompt: Value, sides: [Value; 2]| {
        let [chosen, rejected] = sides;
        json!({"prompt": prompt, "chosen": chosen, "rejected": rejected, "é": "\u{1F600}"})
    };
    let both = |make: &dyn Fn(&str) -> Value| [make(first), make(second)];
    let candidates = |prompt: &str, make: &dyn Fn(&str) -> Value| json!({"prompt": prompt, "responses": both(make)});
    let text = |text: &str| Value::from(text);
    vec![
        ("preference", pair("Q".into(), both(&text))),
        (
            "preference",
            pair(json!([user, turn("a ".into())]), both(&text)),
        ),
        ("preference", pair("Q".into(), both(&whole))),
        (
            "preference",
            pair("Q".into(), both(&|it| spelled(whole(it)))),
        ),
        (
            "preference",
            pair(
                spelled(json!([system, user])),
                both(&|it| pretty(whole(it))),
            ),
        ),
        (
            "preference",
            pair("Q".into(), both(&|it| json!([turn(parts(it))]))),
        ),
        (
            "preference",
            pair("Q".into(), both(&|it| spelled(json!([turn(parts(it))])))),
        ),
        (
            "preference",
            pair(marked.into(), both(&|it| format!(" {it}").into())),
        ),
        ("preference", pair(marked.into(), both(&text))),
        (
            "preference",
            pair(
                marked.trim_start().into(),
                both(&|it| format!(" {it}").into()),
            ),
        ),
        (
            "preference",
            pair(marked.into(), both(&|it| format!("{marked} {it}").into())),
        ),
        (
            "preference",
            pair(
                "\n\nHuman: Q".into(),
                both(&|it| format!("\n\nAssistant:{it}").into()),
            ),
        ),
        (
            "hh",
            json!({"chosen": format!("{marked} {first}"), "rejected": format!("{marked}{second}")}),
        ),
        (
            "sharegpt",
            json!({
                "conversations": [{"from": "human", "value": "Q"}], "chosen": said(first),
                "rejected": spelled(json!([said(second)])),
            }),
        ),
        ("alpaca", json!({"instruction": "Q", "output": both(&text)})),
        (
            "alpaca",
            json!({"instruction": "Q", "output": spelled(json!(both(&text)))}),
        ),
        (
            "alpaca",
            json!({"instruction": "Q", "output": both(&|it| spelled(whole(it)))}),
        ),
        (
            "shp",
            json!({"history": "Q", "human_ref_A": first, "human_ref_B": second, "labels": "1"}),
        ),
        (
            "candidates",
            candidates("Q", &|it| spelled(json!([turn(it.into())]))),
        ),
        (
            "candidates",
            candidates(marked, &|it| json!({"text": format!(" {it}"), "score": 1})),
        ),
        (
            "candidates",
            json!({"prompt": "Q", "responses": spelled(json!(both(&|it| spelled(whole(it)))))}),
        ),
    ]
}

/// The prompt and the responses that a row says, or why it cannot be used.
fn read(format: &str, row: &str) -> std::result::Result<Vec<Vec<String>>, &'static str> {
    let contents = |chat: &[crate::message::Message]| {
        let shown = |message: &crate::message::Message| format!("{message:?}");
        chat.iter().map(shown).collect::<Vec<_>>()
    };
    let rows = crate::formats::Rows::Json;
    let read = match Format::named(format).expect("a format") {
        Format::Candidates => {
            crate::formats::parse_candidates(row.as_bytes(), rows, false, |set, _| {
                let mut chats = vec![contents(&set.prompt)];
                chats.extend(set.responses.iter().map(|chat| contents(chat)));
                chats
            })
        }
        format => crate::formats::parse_pair(row.as_bytes(), format, rows, false, |pair, _| {
            [&pair.prompt, &pair.chosen, &pair.rejected]
                .map(|chat| contents(chat))
                .to_vec()
        }),
    };
    read.map_err(|reject| reject.reason)
}

#[test]
fn each_form_says_a_pair() {
    for (format, row) in forms("u a", "v b") {
        let said =
            read(format, &row.to_string()).unwrap_or_else(|reason| panic!("{reason}: {row}"));
        let [_, chosen, rejected] = &said[..] else {
            panic!("{row}");
        };
        assert!(
            chosen[0].contains("\"u a\"") && rejected[0].contains("\"v b\""),
            "{said:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// A row that is cut and read says what the row says whose texts were cut before.
    #[test]
    fn cut_rows_say_what_they_said_but_for_the_cut(
        first in "u[ab é\"\\\\,\n\u{1F600}]{0,12}",
        second in "v[ab é\"\\\\,\n]{0,12}",
        count in 1usize..4,
        ascii in any::<bool>(),
    ) {
        let short = [kept_words(&first, count), kept_words(&second, count)];
        for ((format, row), (_, cut)) in forms(&first, &second).into_iter().zip(forms(short[0], short[1])) {
            let mut text = row.to_string();
            if ascii {
                let escaped = row::json_string(&text, true);
                text = escaped[1..escaped.len() - 1].replace("\\\"", "\"").replace("\\\\", "\\");
            }
            let made = lines(format, &text, count).expect("a row");
            prop_assert_eq!(read(format, &made), read(format, &cut.to_string()), "{} {}", text, made);
            let csv = |row: &Value| {
                let row = row.as_object().expect("an object");
                let cell = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let names: Vec<String> = row.keys().cloned().collect();
                let cells: Vec<String> = row.values().map(cell).collect();
                format!("{}\n{}\n", record(&names, b','), record(&cells, b','))
            };
            let (layout, written) = (Layout::Records { delimiter: b',' }, Written::Csv { delimiter: b',' });
            let made = run(&mut cutter(format, layout, written), &csv(&row), count).expect("a row");
            let back = |text: &str| {
                let limits = Limits { bytes: 1 << 20, rows: 9, row_bytes: 1 << 20 };
                let mut blocks = Blocks::new(Layout::Csv { delimiter: b',' }, limits);
                blocks.push(text.as_bytes()).expect("CSV");
                let block = blocks.finish().expect("CSV").pop().expect("a row");
                read(format, std::str::from_utf8(&block.data).expect("UTF-8"))
            };
            prop_assert_eq!(back(&made), back(&csv(&cut)), "{}", made);
        }
    }
}
