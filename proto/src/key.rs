//! Keys of the fields that frames are full of: number times 8, plus wire type. One byte each as
//! they are written; a reader may meet any varint, so they are as wide as one.

pub(crate) const FRAME_EVENT: u64 = 0x0A;
pub(crate) const FRAME_STAMP: u64 = 0x12;
pub(crate) const FRAME_PADDING: u64 = 0x7A;

pub(crate) const EVENT_TOPIC: u64 = 0x0A;
pub(crate) const EVENT_PAYLOAD: u64 = 0x12;
pub(crate) const EVENT_KEY: u64 = 0x1A;
pub(crate) const EVENT_TIME: u64 = 0x21;
pub(crate) const EVENT_ATTRIBUTE: u64 = 0x2A;

pub(crate) const ATTRIBUTE_NAME: u64 = 0x0A;
pub(crate) const ATTRIBUTE_VALUE: u64 = 0x12;

pub(crate) const STAMP_SENDER: u64 = 0x09;
pub(crate) const STAMP_SEQUENCE: u64 = 0x10;
pub(crate) const STAMP_DROPPED: u64 = 0x18;
pub(crate) const STAMP_HOPS: u64 = 0x20;
pub(crate) const STAMP_WEIGHT: u64 = 0x29;
