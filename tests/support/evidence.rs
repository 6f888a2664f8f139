//! What tests of a promise have measured, for the table of SECURITY.md.
//!
//! A test tells what goes wrong, what is promised nevertheless, and what it saw. It asserts the
//! promise itself: nothing here decides anything.

use std::path::Path;

use serde_json::{Value, json};

/// Names the directory that takes what tests tell. Unset, they tell nothing.
const DIRECTORY: &str = "HAILMARY_EVIDENCE";

/// One thing that was measured.
#[derive(Debug)]
pub struct Figure {
    what: &'static str,
    value: Value,
    unit: &'static str,
}

/// A measured number, in a unit such as `events`, `ns` or `%`.
pub fn figure(what: &'static str, value: impl Into<Value>, unit: &'static str) -> Figure {
    let value = value.into();
    Figure { what, value, unit }
}

/// Tells of a fault, the promise under it and the figures. `name` is unique among all tests, and
/// becomes a file's.
pub fn tell(name: &str, fault: &str, promise: &str, figures: &[Figure]) {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let object = |figure: &Figure| {
        let Figure { what, value, unit } = figure;
        json!({ "what": what, "value": value, "unit": unit })
    };
    let figures: Vec<_> = figures.iter().map(object).collect();
    let text = json!({ "fault": fault, "promise": promise, "figures": figures }).to_string();
    std::fs::write(Path::new(&directory).join(format!("{name}.json")), text).unwrap();
}
