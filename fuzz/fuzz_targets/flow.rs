#![no_main]
#![expect(missing_docs, reason = "a program, told of in hailmary_fuzz::flow")]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hailmary_fuzz::flow::run(data));
