#![no_main]
#![expect(missing_docs, reason = "a program, told of in hailmary_fuzz::admin")]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hailmary_fuzz::admin::run(data));
