//! How many datagrams are taken at once.
//!
//! Many, so that what waits goes out in few, full frames; but no more bytes than the processor's
//! cache holds from their arrival till they are sent.

use super::sys::RECEIVE_BATCH_MAX;

/// The fewest at a time: less saves nothing, however large they are.
const RECEIVE_BATCH_MIN: usize = 16;

/// Bytes of a batch: half of what one core's second cache mostly has.
const CACHED_BYTES: usize = 512 << 10;

/// The size of the next batch.
#[derive(Debug)]
pub struct BatchSize(usize);

impl Default for BatchSize {
    fn default() -> Self {
        Self(RECEIVE_BATCH_MAX)
    }
}

impl BatchSize {
    /// Datagrams to take.
    #[must_use]
    pub fn get(&self) -> usize {
        self.0
    }

    /// Goes by what was taken last: so many datagrams, with so many bytes.
    pub fn learn(&mut self, datagrams: usize, bytes: usize) {
        if let Some(size) = bytes.checked_div(datagrams) {
            let fitting = CACHED_BYTES / size.max(1);
            self.0 = fitting.clamp(RECEIVE_BATCH_MIN, RECEIVE_BATCH_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ones_come_in_full_batches_and_large_ones_in_few() {
        let mut size = BatchSize::default();
        assert_eq!(size.get(), RECEIVE_BATCH_MAX);
        for (datagrams, bytes, next) in [
            (10, 10 * 16 * 1_024, 32),
            (0, 0, 32),
            (1, 65_507, RECEIVE_BATCH_MIN),
            (7, 0, RECEIVE_BATCH_MAX),
            (1, 160, RECEIVE_BATCH_MAX),
        ] {
            size.learn(datagrams, bytes);
            assert_eq!(
                size.get(),
                next,
                "after {datagrams} of {bytes} bytes in all"
            );
        }
    }
}
