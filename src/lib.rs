//! Hail Mary: a best-effort event bus.
