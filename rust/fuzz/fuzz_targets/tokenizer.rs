#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/tokenizer.rs"]
mod tokenizer;

fuzz_target!(|data: &[u8]| tokenizer::check(data));
