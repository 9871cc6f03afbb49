#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| erank_fuzz::document_file(data));
