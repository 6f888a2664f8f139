//! Every input that is kept, seeds and cases of what was once found, by a stable compiler.

use std::fs;
use std::path::{Path, PathBuf};

use hailmary_fuzz::TARGETS;

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

#[test]
fn no_input_that_is_kept_breaks_a_promise() {
    for (target, run) in TARGETS {
        run(b"");
        let seeds = inputs("seeds", target);
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for path in seeds.into_iter().chain(inputs("cases", target)) {
            let input = fs::read(&path).unwrap();
            println!("{}", path.display());
            run(&input);
        }
    }
}
