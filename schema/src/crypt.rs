//! AES-256-GCM from aws-lc-rs, and key derivation by BLAKE3. Nothing else in the workspace touches a cipher.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{FormatError, Result};

/// Bytes that sealing adds.
pub(crate) const TAG_LEN: usize = 16;

/// 32 secret bytes: never printed, erased when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secret([u8; 32]);

impl Secret {
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key for one purpose. `context` is a constant of the format.
    pub(crate) fn derive(&self, context: &str) -> Self {
        Self(blake3::derive_key(context, &self.0))
    }

    /// A key for one thing.
    pub(crate) fn for_thing(&self, name: &[u8]) -> Self {
        Self(*blake3::keyed_hash(&self.0, name).as_bytes())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

fn cipher(key: &Secret) -> Result<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key.bytes())
        .map(LessSafeKey::new)
        .map_err(|_| FormatError::invalid("key", "the cipher refused it"))
}

/// Encrypts `data` in place and returns the tag.
pub(crate) fn seal(key: &Secret, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> Result<[u8; TAG_LEN]> {
    let tag = cipher(key)?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), data)
        .map_err(|_| FormatError::invalid("plaintext", "too long to seal"))?;
    let mut out = [0; TAG_LEN];
    out.copy_from_slice(tag.as_ref());
    Ok(out)
}

/// Decrypts `data` (ciphertext with its tag at the end) into `out`, which is cleared first.
pub(crate) fn open(
    key: &Secret,
    nonce: [u8; 12],
    aad: &[u8],
    data: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Tampered> {
    let cipher = cipher(key).map_err(|_| Tampered)?;
    let body = data.len().checked_sub(TAG_LEN).ok_or(Tampered)?;
    out.clear();
    out.resize(body, 0);
    let (ciphertext, tag) = data.split_at(body);
    cipher
        .open_separate_gather(Nonce::assume_unique_for_key(nonce), Aad::from(aad), ciphertext, tag, out)
        .map_err(|_| Tampered)
}

/// The tag did not match: wrong key, or changed bytes.
#[derive(Debug)]
pub(crate) struct Tampered;
