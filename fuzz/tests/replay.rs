//! Every input that is kept, seeds and cases of what was once found, as it is and changed in a
//! thousand ways, the same each time: by a stable compiler, in seconds.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hailmary_fuzz::{TARGETS, Target};

/// Changed inputs of each target. `HAILMARY_MUTATIONS` says otherwise.
const MUTATIONS: u64 = 1_000;

/// The longest that one input may take, on a machine that has much else to do: it is milliseconds.
const INPUT_TIME_MAX: Duration = Duration::from_secs(10);

/// The longest input, in bytes.
const INPUT_BYTES_MAX: usize = 4_096;

/// Each target's inputs, by name. There is at least one seed of each.
fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(kind)
        .join(target);
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn kept(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let seeds = inputs("seeds", target);
    assert!(!seeds.is_empty(), "{target} has no seeds");
    let all = seeds.into_iter().chain(inputs("cases", target));
    all.map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn no_input_that_is_kept_breaks_a_promise() {
    for (target, run) in TARGETS {
        run(b"");
        for (path, input) in kept(target) {
            println!("{}", path.display());
            run(&input);
        }
    }
}

/// SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// One input made of another: a few bytes changed, put in or taken out, or a piece of a third one.
fn changed(numbers: &mut Numbers, one: &[u8], other: &[u8]) -> Vec<u8> {
    let mut input = one.to_vec();
    for _ in 0..1 + numbers.below(8) {
        let at = numbers.below(input.len() + 1);
        let end = (at + numbers.below(16)).min(input.len());
        let byte = numbers.next() as u8;
        match numbers.below(6) {
            0 => drop(input.drain(at..end)),
            1 => input.insert(at, byte),
            2 => drop(input.splice(at..at, input[at..end].to_vec())),
            3 => {
                let from = numbers.below(other.len() + 1);
                let to = (from + numbers.below(64)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            4 if at < end => input[at] ^= 1 << (byte % 8),
            _ if at < end => input[at] = byte,
            _ => input.push(byte),
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

/// Also told where it panics: then nothing else says which input it was.
struct Told<'a>(&'a str, u64, &'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Told(target, number, input) = self;
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("{target}'s changed input {number}, in hex:\n{hex}");
        }
    }
}

fn mutate((target, run): Target, mutations: u64) {
    let kept = kept(target);
    for number in 0..mutations {
        let mut numbers = Numbers(number);
        let pick = |numbers: &mut Numbers| kept[numbers.below(kept.len())].1.as_slice();
        let (one, other) = (pick(&mut numbers), pick(&mut numbers));
        let input = changed(&mut numbers, one, other);
        let _told = Told(target, number, &input);
        let began = Instant::now();
        run(&input);
        assert!(began.elapsed() < INPUT_TIME_MAX, "too slow");
    }
}

#[test]
fn no_changed_input_breaks_a_promise() {
    let told = std::env::var("HAILMARY_MUTATIONS").ok();
    let mutations = told.map_or(MUTATIONS, |told| told.parse().unwrap());
    std::thread::scope(|threads| {
        for target in TARGETS {
            threads.spawn(move || mutate(target, mutations));
        }
    });
}
