#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::layer(&std::env::temp_dir(), bytes));
