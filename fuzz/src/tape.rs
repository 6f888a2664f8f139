//! Decisions from a tape of bytes: each takes one byte or a few off it, and what lies behind its
//! end is for ever 0. So an input that is cut short or changed in one place stays meaningful.

use std::time::Duration;

use crate::wire::datagrams::{self, Faults};

/// The longest piece of a tape that makes up one datagram, in bytes.
const PIECE_BYTES_MAX: usize = 1 << 10;

pub(crate) struct Tape<'a> {
    rest: &'a [u8],
}

impl<'a> Tape<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let (first, rest) = self.rest.split_first().unwrap_or((&0, &[]));
        self.rest = rest;
        *first
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// Once in so many times.
    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    pub(crate) fn pick<'b, T>(&mut self, of: &'b [T]) -> &'b T {
        &of[self.below(of.len())]
    }

    /// Small, huge, or anything.
    pub(crate) fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => u64::from(self.byte()),
            1 => u64::MAX - u64::from(self.byte()),
            2 => 1 << (self.byte() % 64),
            _ => (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte())),
        }
    }

    /// A piece of the tape as it is.
    pub(crate) fn piece(&mut self) -> &'a [u8] {
        let bytes = usize::from(self.byte()) << 8 | usize::from(self.byte());
        let bytes = (bytes % PIECE_BYTES_MAX).min(self.rest.len());
        let (piece, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        piece
    }

    /// A datagram: anything, nearly a frame, or a frame of any shape.
    pub(crate) fn datagram(&mut self) -> Vec<u8> {
        match self.below(4) {
            0 => self.piece().to_vec(),
            1 => datagrams::datagram(self.piece(), Faults::Some),
            _ => datagrams::datagram(self.piece(), Faults::None),
        }
    }

    /// From none at all to a day: what passes between two datagrams.
    pub(crate) fn pause(&mut self) -> Duration {
        let steps = u64::from(self.byte());
        match self.below(4) {
            0 => Duration::from_micros(steps),
            1 => Duration::from_millis(10 * steps),
            2 => Duration::from_secs(steps),
            _ => Duration::from_secs(steps * 300),
        }
    }
}
