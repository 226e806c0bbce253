//! Somebody who writes 4 KiB and waits until the disk has them, again and again: how long he waits at most.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::e2e::eventually;

/// A thread that writes to one place of a device.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    writes: AtomicU64,
    longest_us: AtomicU64,
}

impl Writer {
    /// Writes at `offset` of `device` from now on.
    pub fn start(device: &str, offset: u64) -> Self {
        let file = OpenOptions::new().write(true).open(device);
        let file = file.unwrap_or_else(|why| panic!("{device}: {why}"));
        let shared = Arc::new(Shared::default());
        let seen = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut last = Instant::now();
            while !seen.stop.load(Ordering::Relaxed) {
                let number = seen.writes.load(Ordering::Relaxed);
                file.write_all_at(&[number as u8; 4096], offset).expect("the device is written");
                file.sync_data().expect("the device takes what was written");
                let now = Instant::now();
                let waited = u64::try_from((now - last).as_micros()).unwrap_or(u64::MAX);
                seen.longest_us.fetch_max(waited, Ordering::Relaxed);
                seen.writes.fetch_add(1, Ordering::Relaxed);
                last = now;
            }
        });
        Self { shared, thread }
    }

    /// The longest time between two writes that were done, in milliseconds, over the next `writes`; and forgets it.
    pub fn longest_ms_over(&self, writes: u64) -> f64 {
        let enough = self.shared.writes.load(Ordering::Relaxed) + writes;
        eventually("it writes", || (self.shared.writes.load(Ordering::Relaxed) >= enough).then_some(()));
        self.shared.longest_us.swap(0, Ordering::Relaxed) as f64 / 1e3
    }

    /// The longest time since that was last asked, in milliseconds.
    pub fn end(self) -> f64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer ends");
        self.shared.longest_us.load(Ordering::Relaxed) as f64 / 1e3
    }
}
