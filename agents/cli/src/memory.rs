//! Keeps the system allocator from spreading over one arena per thread, and from giving back what it needs again.
//!
//! Buffers of sealed chunks are made in one thread and freed in another; with an arena per thread that leaves holes in
//! each. One arena measured 10 % less memory and half the system time on a first backup. Buffers of some MiB that are
//! fresh from the kernel each time cost a restore a third of its page faults. The only `unsafe` of the binary itself.

/// Bytes from which on the kernel is asked for each: more than a fetch or a segment.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 8 << 20;
/// Free bytes at the end that are kept.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 64 << 20;

/// Call it before any thread is started.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub fn keep_together() {
    // SAFETY: mallopt only sets numbers of the allocator; no other thread exists yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Other allocators have no such setting.
#[cfg(not(target_env = "gnu"))]
pub fn keep_together() {}
