//! A wall clock that a test sets, for a program that is started with this library before all
//! others (`LD_PRELOAD`, ld.so(8)). It stands beside the tests as a source, and they compile it.
//!
//! The file named by `HAILMARY_TEST_CLOCK` holds by how many seconds the program's clock is ahead.
//! It is opened as the program starts, which may give up its right to open files later.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

const CLOCK_REALTIME: c_int = 0;
const RTLD_NEXT: *mut c_void = -1_isize as *mut c_void;
const PROT_READ: c_int = 1;
const MAP_SHARED: c_int = 1;

#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanos: i64,
}

type ClockGettime = unsafe extern "C" fn(c_int, *mut Timespec) -> c_int;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn mmap(
        at: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        descriptor: c_int,
        offset: i64,
    ) -> *mut c_void;
}

fn ahead_seconds() -> i64 {
    static AHEAD: OnceLock<Option<&'static AtomicI64>> = OnceLock::new();
    let ahead = AHEAD.get_or_init(|| {
        let path = std::env::var_os("HAILMARY_TEST_CLOCK")?;
        let file = std::fs::File::open(path).ok()?;
        // SAFETY: a new mapping of a file of 8 bytes, which lasts as long as the program.
        let mapped =
            unsafe { mmap(std::ptr::null_mut(), 8, PROT_READ, MAP_SHARED, file.as_raw_fd(), 0) };
        // SAFETY: mapped for good where it is not MAP_FAILED, and aligned to a page.
        (mapped as isize != -1).then(|| unsafe { &*mapped.cast::<AtomicI64>() })
    });
    ahead.map_or(0, |ahead| ahead.load(Ordering::Relaxed))
}

extern "C" fn open_file() {
    ahead_seconds();
}

/// What the loader calls before the program begins.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = open_file;

/// Stands in for clock_gettime(3).
///
/// # Safety
///
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    static REAL: OnceLock<Option<ClockGettime>> = OnceLock::new();
    const NAME: &CStr = c"clock_gettime";
    let real = REAL.get_or_init(|| {
        // SAFETY: the library's own function of this name and type, if it has one.
        unsafe { std::mem::transmute(dlsym(RTLD_NEXT, NAME.as_ptr())) }
    });
    let Some(real) = real else {
        return -1;
    };
    // SAFETY: the caller's promise is the same.
    unsafe {
        let result = real(clock, time);
        if result == 0 && clock == CLOCK_REALTIME {
            (*time).seconds += ahead_seconds();
        }
        result
    }
}
