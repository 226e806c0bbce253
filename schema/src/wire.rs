//! MessagePack for small values: headers of messages, bodies of objects.
//!
//! Structs are written as maps with names, so that a field may be added within a version. Before anything is
//! decoded, a walk over the bytes checks that every length in them is covered by what follows: a claimed length
//! never decides an allocation, and nothing may follow the value.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cursor::Cursor;
use crate::{FormatError, Result};

/// Levels of nesting that any value of this crate stays below.
const DEPTH_MAX: usize = 32;

/// Encodes a value of this crate; it cannot fail, since all of them are plain data.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let written = value.serialize(&mut rmp_serde::Serializer::new(&mut out).with_struct_map());
    debug_assert!(written.is_ok(), "plain data always encodes");
    out
}

/// Decodes a value that fills `bytes` exactly.
pub(crate) fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T> {
    check_lengths(what, bytes)?;
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut reader).map_err(|why| FormatError::invalid(what, why.to_string()))
}

/// Decodes a value with a field `version`, which is looked at before any other: a later version may have changed
/// all the others, and is refused by name all the same.
pub(crate) fn decode_versioned<T: DeserializeOwned>(
    what: &'static str,
    known: u16,
    bytes: &[u8],
) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        version: u16,
    }
    let Version { version: found } = decode(what, bytes)?;
    if found == 0 || found > known {
        return Err(FormatError::version(what, found, known));
    }
    decode(what, bytes)
}

/// Walks over one MessagePack value: every length must be covered by the bytes that follow it (an element takes
/// one byte at least), and the value must end where the bytes do.
fn check_lengths(what: &'static str, bytes: &[u8]) -> Result<()> {
    let mut cursor = Cursor::new(what, bytes);
    let mut pending = 1;
    while pending > 0 {
        let (skip, elements) = head(what, &mut cursor)?;
        cursor.take(skip)?;
        pending = pending - 1 + elements;
        if pending > cursor.left() {
            return Err(FormatError::Truncated { what, needed: pending, left: cursor.left() });
        }
    }
    cursor.end()
}

/// Reads the start of one value: how many bytes of its own follow, and how many values inside it.
fn head(what: &'static str, cursor: &mut Cursor<'_>) -> Result<(usize, usize)> {
    let marker = cursor.u8()?;
    let mut length = |bytes: usize| -> Result<usize> {
        Ok(cursor.take(bytes)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    };
    let low = |bits: u8| usize::from(marker & ((1 << bits) - 1));
    Ok(match marker {
        0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => (0, 0),
        0x80..=0x8f => (0, 2 * low(4)),
        0x90..=0x9f => (0, low(4)),
        0xa0..=0xbf => (low(5), 0),
        0xc4 | 0xd9 => (length(1)?, 0),
        0xc5 | 0xda => (length(2)?, 0),
        0xc6 | 0xdb => (length(4)?, 0),
        0xc7 => (length(1)? + 1, 0),
        0xc8 => (length(2)? + 1, 0),
        0xc9 => (length(4)? + 1, 0),
        0xca | 0xce | 0xd2 => (4, 0),
        0xcb | 0xcf | 0xd3 => (8, 0),
        0xcc | 0xd0 => (1, 0),
        0xcd | 0xd1 => (2, 0),
        0xd4..=0xd8 => ((1 << (marker - 0xd4)) + 1, 0),
        0xdc => (0, length(2)?),
        0xdd => (0, length(4)?),
        0xde => (0, 2 * length(2)?),
        0xdf => (0, 2 * length(4)?),
        0xc1 => return Err(FormatError::invalid(what, "it is not MessagePack")),
    })
}
