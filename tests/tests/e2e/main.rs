//! Real processes of `lvkeep`, alone and together with a real NATS server and a real object store.
//!
//! Backups must be restorable byte for byte; whatever is killed, damaged or misused must end in a snapshot that can
//! be restored or in a failure with a name, a documented exit code and nothing half-written in sight.

mod bad_keys;
mod bad_sources;
mod bad_stores;
mod bad_targets;
mod bulk;
mod bulk_guests;
mod commands;
mod copies;
mod damage;
mod distributed;
mod embedded;
mod fan_out;
mod far;
mod golden;
mod golden_marked;
mod kills;
mod lasting;
mod memory;
mod object_store;
mod prune;
mod reading;
mod rescue;
mod restorer;
mod retention;
mod shared;
mod snapbacks;
mod spans;
mod streams;
mod times;
mod undo;
