//! Publishing allocates nothing once its buffer has grown.
#![expect(unsafe_code, reason = "a global allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::UdpSocket;

use hailmary_client::{Event, Publisher};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Counts what each thread takes, so that tests in parallel do not disturb.
struct Counting;

// SAFETY: every call goes to the system's allocator as it is; counting touches a
// thread-local without a destructor, and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(of: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    of();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1_u8; 9]))), 1);
}

#[test]
fn a_publish_allocates_nothing() {
    let bus = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = bus.local_addr().unwrap().to_string().parse().unwrap();
    let publisher = Publisher::connect(&address).unwrap();
    let event = Event::new("a.b", "payload")
        .key("k")
        .attributes(&[("n", "v")]);
    let mut batch = publisher.batch();
    let mut publish = || {
        publisher.publish("a", "payload");
        publisher.publish("not..legal", "payload");
        publisher.publish_event(&event);
        for _ in 0..100 {
            batch.push(&event);
        }
        batch.flush();
    };
    publish();
    assert_eq!(allocations(|| (0..50).for_each(|_| publish())), 0);
    drop(bus);
    // Nor where nobody listens any more.
    assert_eq!(allocations(|| (0..50).for_each(|_| publish())), 0);
}
