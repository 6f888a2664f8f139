//! Every input that is kept, seeds and cases of what was once found, as it is and changed in a
//! thousand ways, the same each time: by a stable compiler, in seconds.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use hailmary_fuzz::core::{self, Reached};
use hailmary_fuzz::{TARGETS, Target};

/// Changed inputs of each target. `HAILMARY_MUTATIONS` says otherwise.
const MUTATIONS: u64 = 1_000;

/// The longest that one input may take of a processor: it is milliseconds.
const INPUT_TIME_MAX: Duration = Duration::from_secs(2);

/// The longest input, in bytes: a datagram, behind a byte that says what it is.
const INPUT_BYTES_MAX: usize = 1 + 65_507;

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

/// What a tape says depends on who reads it: so that seeds of the core do not lose their sense.
#[test]
fn seeds_of_the_core_get_as_far_as_they_are_to() {
    let reached = kept("core").into_iter().map(|(path, input)| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, core::reach(&input))
    });
    let reached: HashMap<_, _> = reached.collect();
    let of = |name: &str| &reached[name];
    let came = of("come-and-go");
    assert!(came.leases.granted >= 14 && came.renewed >= 1 && came.released >= 13);
    assert!(came.copies >= 3 && came.full_of_origin == 0);
    let host = of("a-host-with-too-many");
    assert_eq!((host.leases.granted, host.full_of_origin), (5, 2));
    let many = of("too-many-of-many-origins");
    assert_eq!((many.leases_max, many.full), (8, 2));
    assert!(many.origins_max >= 5 && many.copies >= 8);
    let ended = of("leases-that-end");
    assert_eq!((ended.leases.granted, ended.renewed), (6, 2));
    assert_eq!((ended.leases.expired, ended.copies), (6, 2));
    for name in ["forged-by-bit-0", "forged-by-bit-7"] {
        let forged = of(name);
        assert_eq!((forged.leases.granted, forged.released), (1, 1), "{name}");
        assert!(forged.leases.challenges > 2 * 20, "{name}");
        assert!(forged.leases.refusals[5] >= 20, "{name}");
    }
    let sum = |what: fn(&Reached) -> u64| reached.values().map(what).sum::<u64>();
    assert!(sum(|reached| reached.leases.revoked) > 0);
    assert!(sum(|reached| reached.leases.refusals[1]) > 0);
    assert!(sum(|reached| reached.leases.unanswered) > 0);
    assert!(sum(|reached| reached.denied_frames) > 0);
    assert!(sum(|reached| reached.denied_events) > 0);
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

/// What this thread has had of a processor, where the system tells: whatever else the machine has
/// to do, it does not count. Elsewhere, what has gone by.
fn processor_time() -> Duration {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let told = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let ns = told.and_then(|told| told.split(' ').next()?.parse().ok());
    ns.map_or_else(|| BEGAN.elapsed(), Duration::from_nanos)
}

fn mutate((target, run): Target, mutations: u64) {
    let kept = kept(target);
    for number in 0..mutations {
        let mut numbers = Numbers(number);
        let pick = |numbers: &mut Numbers| kept[numbers.below(kept.len())].1.as_slice();
        let (one, other) = (pick(&mut numbers), pick(&mut numbers));
        let input = changed(&mut numbers, one, other);
        let _told = Told(target, number, &input);
        let before = processor_time();
        run(&input);
        assert!(processor_time() - before < INPUT_TIME_MAX, "too slow");
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
