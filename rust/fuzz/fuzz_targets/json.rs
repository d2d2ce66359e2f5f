#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/json.rs"]
mod json;

fuzz_target!(|data: &[u8]| json::check(data));
