//! A configuration: it is refused with words that stand on a line of the file, or it is taken,
//! printed and read again to the same effect, and a running core changes over to it.

use std::time::Duration;

use hailmary::bus::{Settings, open};
use hailmary::config::Config;

/// The longest text: longer ones say nothing new.
const TEXT_BYTES_MAX: usize = 4_096;

/// What reading holds at once for each byte of the text: tables, spans and messages that quote it.
const BYTES_PER_BYTE: u64 = 2_048;

/// What it holds beside, the core included.
const BYTES_BESIDE: u64 = 4 << 20;

/// See the module.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if text.len() <= TEXT_BYTES_MAX {
        let bytes_max = BYTES_BESIDE + BYTES_PER_BYTE * text.len() as u64;
        crate::within(bytes_max, || check(text));
    }
}

fn check(text: &str) {
    let (config, plan) = match Config::parse("bus.toml", text) {
        Ok(read) => read,
        Err(error) => return check_words(&error.to_string(), text),
    };
    let printed = toml::to_string(&config).expect("what was read can be printed");
    let (_, again) = Config::parse("printed", &printed)
        .unwrap_or_else(|error| panic!("printed as\n{printed}\nand refused:\n{error}"));
    assert_eq!(format!("{plan:?}"), format!("{again:?}"));
    let checked = config.check("flags", "").expect("it was right before");
    assert_eq!(format!("{plan:?}"), format!("{checked:?}"));
    reload(&plan.settings);
}

/// Each problem is a line that says where and what.
fn check_words(error: &str, text: &str) {
    let lines = text.lines().count().max(1) + 1;
    assert!(!error.is_empty());
    for problem in error.lines() {
        let rest = problem.strip_prefix("bus.toml:");
        let rest = rest.unwrap_or_else(|| panic!("no file in {problem:?} of {error:?}"));
        let (place, words) = rest.split_once(':').unwrap_or(("", rest));
        let words = match place.parse::<usize>() {
            Ok(line) => {
                assert!((1..=lines).contains(&line), "line {line} of {lines}");
                words
            }
            Err(_) => rest,
        };
        assert!(words.trim().len() > 3, "no words in {problem:?}");
        assert!(!words.contains(char::is_control), "{words:?}");
    }
}

/// A core changes over from the default to it and back.
fn reload(settings: &Settings) {
    let (_, plan) = Config::parse("default", "[listen]").expect("a configuration");
    let mut counter = 0_u8;
    let random = move || {
        counter = counter.wrapping_add(1);
        [counter; 16]
    };
    let mut parts = open(&plan.settings, 1, Duration::ZERO, Box::new(random));
    for (settings, subscribers) in [(settings, settings.subscribers.len()), (&plan.settings, 0)] {
        let mut events = Vec::new();
        let directory = &mut parts.directory;
        let changes = parts
            .registrar
            .reconfigure(settings, directory, &mut events);
        assert_eq!(
            (changes.added.len(), changes.changed.len()),
            (subscribers, 0)
        );
        assert_eq!(directory.subscribers().iter().count(), subscribers);
        assert!(events.is_empty());
    }
}
