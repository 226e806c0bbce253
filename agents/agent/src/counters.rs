//! Counters of one agent process: a fixed set, in bytes or in numbers, read by the metrics endpoint and by roll calls.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    (
        $($(#[$doc:meta])* $name:ident => $text:literal,)*;
        $($(#[$gauge_doc:meta])* $gauge:ident => $gauge_text:literal,)*
    ) => {
        /// All counters. Cheap to add to from any thread.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
            $($(#[$gauge_doc])* pub $gauge: Gauge,)*
        }

        impl Counters {
            /// Name, help text and value of each.
            pub fn list(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $text, self.$name.get()),)*]
            }

            /// The same of what is so now.
            pub fn gauges(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($gauge), $gauge_text, self.$gauge.get()),)*]
            }
        }
    };
}

counters! {
    /// Bytes read from sources.
    bytes_read => "Bytes read from sources.",
    /// Bytes found or known to be zero.
    bytes_zero => "Bytes that are zero and were not stored.",
    /// Bytes already stored.
    bytes_known => "Bytes that were stored already.",
    /// Bytes new to the repository.
    bytes_new => "Bytes new to the repository.",
    /// Bytes that new chunks take in packs.
    bytes_stored => "Bytes of new chunks after compression and sealing.",
    /// Bytes fetched by restores.
    bytes_fetched => "Bytes fetched from the store for restores.",
    /// Bytes written by restores.
    bytes_restored => "Bytes written to restore targets.",
    /// Packs uploaded.
    packs_stored => "Packs uploaded.",
    /// Uploads that had to be repeated under a new name.
    packs_retried => "Uploads of packs that were repeated under a new name.",
    /// Sessions sealed.
    sessions_sealed => "Sessions that were sealed.",
    /// Sessions failed.
    sessions_failed => "Sessions that failed by name.",
    /// Snapshots that policies of the configuration let go.
    snapshots_forgotten => "Snapshots forgotten by policies of the configuration.",
    /// Sessions after which the policies could not be applied.
    retentions_failed => "Backups after which the policies of the configuration could not be applied.",
    /// Collections that an agent brought to their end by itself.
    collections => "Collections that this agent finished.",
    /// Backups that nobody can tell the end of.
    sessions_uncertain => "Times that a backup was put back because the store does not say how it ended.",
    /// Collections that it could not.
    collections_failed => "Collections of this agent that failed, and are tried again.",
    /// Checks that an agent brought to their end.
    checks => "Checks that this agent finished.",
    /// Those of them that found something.
    checks_damaged => "Checks of this agent that found damage.",
    /// Checks that it could not.
    checks_failed => "Checks of this agent that failed.",
    /// Leaves asked for again.
    leaves_redriven => "Map leaves that were asked for again.",
    /// Microseconds that readers waited for buffers or queues.
    blocked_reader_us => "Microseconds that readers were blocked by what follows them.",
    /// Microseconds that hashers waited for queues.
    blocked_hasher_us => "Microseconds that hashers were blocked by what follows them.",
    /// Microseconds that storers waited for uploads.
    blocked_storer_us => "Microseconds that storers were blocked by uploads.",
    /// Messages taken: what is not handled yet is in hand.
    messages_taken => "Messages taken in hand.",
    /// Messages handled.
    messages_handled => "Messages handled.",
    /// Messages put back for another try.
    messages_retried => "Messages put back for another try.",
    /// Messages given up.
    messages_rejected => "Messages given up; their sessions failed by name.",

    ;
    /// How long ago the oldest session began that a collection waits for.
    collection_waits_seconds => "Seconds since the oldest session began that a collection of this agent waits for; 0 when it waits for none.",
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// It is so much now.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// How much it was last.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
