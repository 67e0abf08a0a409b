#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::http2::run(data));
