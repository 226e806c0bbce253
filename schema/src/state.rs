//! The state of a file or device, and the id of its reading: whoever sees the same state later sees the same bytes.

use crate::ReadingId;

/// What tells one state of a file or device from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileState<P> {
    /// Its path without symbolic links, as bytes.
    pub path: P,
    /// The number of its file system.
    pub file_system: u64,
    /// The number of the device that it is.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written to, in nanoseconds since 1970; 0 of a device.
    pub modified: i128,
    /// When it was changed, in nanoseconds since 1970; 0 of a device.
    pub changed: i128,
}

impl<P: AsRef<[u8]>> FileState<P> {
    /// The id of a reading of this state; `nonce` is empty where another process may recognise it.
    pub fn reading(&self, nonce: &[u8]) -> ReadingId {
        let path = self.path.as_ref();
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"lvkeep 1 reading").update(&(path.len() as u64).to_le_bytes()).update(path);
        for number in [self.file_system, self.device, self.inode, self.size] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&self.modified.to_le_bytes()).update(&self.changed.to_le_bytes()).update(nonce);
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        ReadingId::from_bytes(id)
    }
}
