//! The catalogue of faults: each test brings one about, and asserts what is promised under it.
//!
//! What it measured goes to the table of SECURITY.md.

mod logs;
mod subscribers;
