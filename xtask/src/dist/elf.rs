//! Whether a program runs without any other file: read from its ELF headers, not from what a tool says of it.
//!
//! A static program that can be loaded anywhere has a dynamic section, too, for its own relocations; what it must not
//! have is an interpreter, or a library that is needed.

use anyhow::{Context, Result, ensure};

/// Program headers: a dynamic section, the path of an interpreter.
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
/// An entry of a dynamic section: a library.
const DT_NEEDED: u64 = 1;
/// Bytes of an entry of a dynamic section.
const DYNAMIC_LEN: usize = 16;

/// Fails unless this is an ELF program for x86-64 that needs no other file.
pub fn check_static(elf: &[u8]) -> Result<()> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "it is no 64-bit little-endian ELF file");
    let machine = number(elf, 18, 2)?;
    ensure!(machine == 62, "it is for ELF machine {machine}, and not for x86-64");
    let (headers, each, count) = (number(elf, 32, 8)?, number(elf, 54, 2)?, number(elf, 56, 2)?);
    ensure!(count > 0, "it has no program headers");
    for index in 0..count {
        let at = place(headers.saturating_add(index * each))?;
        match number(elf, at, 4)? {
            PT_INTERP => {
                let path = String::from_utf8_lossy(segment(elf, at)?);
                anyhow::bail!("it needs the interpreter {}", path.trim_end_matches('\0'));
            }
            PT_DYNAMIC => check_needs_nothing(segment(elf, at)?)?,
            _ => {}
        }
    }
    Ok(())
}

fn check_needs_nothing(dynamic: &[u8]) -> Result<()> {
    for entry in dynamic.chunks_exact(DYNAMIC_LEN) {
        ensure!(number(entry, 0, 8)? != DT_NEEDED, "it needs a library");
    }
    Ok(())
}

/// The bytes of the file that a program header is about.
fn segment(elf: &[u8], header: usize) -> Result<&[u8]> {
    let (start, len) = (place(number(elf, header + 8, 8)?)?, place(number(elf, header + 32, 8)?)?);
    elf.get(start..start.saturating_add(len)).context("a program header points behind its end")
}

fn number(elf: &[u8], at: usize, len: usize) -> Result<u64> {
    let bytes = elf.get(at..at.saturating_add(len)).context("it ends in its headers")?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn place(number: u64) -> Result<usize> {
    usize::try_from(number).context("an offset in it is beyond this machine")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of one program header and 32 bytes that it is about.
    fn program(kind: u32, content: [u8; 32]) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64..68].copy_from_slice(&kind.to_le_bytes());
        elf[72] = 64 + 56;
        elf[96] = 32;
        elf.extend(content);
        elf
    }

    fn dynamic(tag: u8) -> [u8; 32] {
        let mut content = [0; 32];
        content[0] = tag;
        content
    }

    #[test]
    fn only_programs_that_need_nothing_pass() {
        check_static(&program(1, [0; 32])).unwrap();
        check_static(&program(2, dynamic(7))).unwrap();
        let refused = |elf: &[u8]| check_static(elf).unwrap_err().to_string();
        assert!(refused(&program(2, dynamic(1))).contains("library"));
        let mut path = [0; 32];
        path[..15].copy_from_slice(b"/lib/ld-linux.2");
        assert!(refused(&program(3, path)).ends_with("/lib/ld-linux.2"));
        assert!(refused(b"#!/bin/sh").contains("no 64-bit"));
        assert!(refused(&program(3, path)[..140]).contains("behind its end"));
        assert!(refused(&program(1, [0; 32])[..66]).contains("ends in its headers"));
        let mut other = program(1, [0; 32]);
        other[18] = 183;
        assert!(refused(&other).contains("machine 183"));
    }

    #[test]
    fn this_test_is_no_static_program() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let refused = check_static(&own).unwrap_err().to_string();
        assert!(refused.contains("interpreter /"), "{refused}");
    }
}
