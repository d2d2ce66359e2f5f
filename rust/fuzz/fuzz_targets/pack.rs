#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/pack.rs"]
mod pack;

fuzz_target!(|data: &[u8]| pack::check(data));
