//! What fuzzing looks for, on the inputs that are kept of it: `make fuzz` goes on from them.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/checks/json.rs"]
mod json;
#[path = "../../fuzz/checks/pack.rs"]
mod pack;
#[path = "../../fuzz/checks/template.rs"]
mod template;
#[path = "../../fuzz/checks/tokenizer.rs"]
mod tokenizer;

fn check_all(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/kept")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the inputs are kept") {
        let path = entry.expect("the folder is readable").path();
        eprintln!("{}", path.display());
        check(&fs::read(&path).expect("the input is readable"));
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}

#[test]
fn json_is_read_or_refused() {
    check_all("json", json::check);
}

#[test]
fn packs_add_up() {
    check_all("pack", pack::check);
}

#[test]
fn templates_render_or_are_refused() {
    check_all("template", template::check);
}

#[test]
fn texts_are_tokenized() {
    check_all("tokenizer", tokenizer::check);
}
