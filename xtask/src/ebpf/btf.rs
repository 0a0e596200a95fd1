//! The types in a `.BTF` section as text, to compare two objects by: maps kept in sockets are defined by types alone.
//!
//! Only the order of the string table, which holds source lines too, is of no consequence: names are resolved. Layout as in the
//! kernel's `Documentation/bpf/btf.rst`.

use anyhow::{Context, Result, bail};

const MAGIC: u16 = 0xeb9f;

/// A trailing word of a type: a string's offset, or a plain number.
#[derive(Clone, Copy)]
enum Word {
    Name,
    Number,
}

use Word::{Name, Number};

/// What follows a type of this kind: words given once, or for each of its members.
fn trailer(kind: u32) -> Option<(&'static [Word], &'static [Word])> {
    Some(match kind {
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => (&[], &[]),
        // Integers, variables, declaration tags.
        1 | 14 | 17 => (&[Number], &[]),
        // Arrays.
        3 => (&[Number; 3], &[]),
        // Structures, unions and 64-bit enumerations.
        4 | 5 | 19 => (&[], &[Name, Number, Number]),
        // Enumerations, parameters.
        6 | 13 => (&[], &[Name, Number]),
        // Sections.
        15 => (&[], &[Number; 3]),
        _ => return None,
    })
}

/// One line for each type, in the order of their ids.
pub fn types(section: &[u8]) -> Result<String> {
    let magic = section.get(..2).context("no BTF header")?;
    if magic != MAGIC.to_le_bytes() {
        bail!("this is no little-endian BTF");
    }
    let header = |index: usize| number(section, 4 + index * 4).map(|value| value as usize);
    let (length, types_at, types_length) = (header(0)?, header(1)?, header(2)?);
    let (strings_at, strings_length) = (header(3)?, header(4)?);
    let part = |at: usize, size: usize| section.get(length + at..length + at + size).context("BTF is cut short");
    let (types, strings) = (part(types_at, types_length)?, part(strings_at, strings_length)?);
    let mut text = String::new();
    let mut at = 0;
    while at < types.len() {
        let (name, info, size) = (number(types, at)?, number(types, at + 4)?, number(types, at + 8)?);
        at += 12;
        text.push_str(&format!("{info:#x} {} {size}", string(strings, name)?));
        let (kind, members) = (info >> 24 & 31, info & 0xffff);
        let (once, each) = trailer(kind).with_context(|| format!("BTF kind {kind} is unknown"))?;
        for word in once.iter().chain((0..members).flat_map(|_| each)) {
            let value = number(types, at)?;
            at += 4;
            match word {
                Name => text.push_str(&format!(" {}", string(strings, value)?)),
                Number => text.push_str(&format!(" {value}")),
            }
        }
        text.push('\n');
    }
    Ok(text)
}

fn number(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..at + 4).context("BTF is cut short")?;
    Ok(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

fn string(strings: &[u8], at: u32) -> Result<&str> {
    let rest = strings.get(at as usize..).context("a name beyond the BTF strings")?;
    let end = rest.iter().position(|byte| *byte == 0).context("a name without end")?;
    Ok(std::str::from_utf8(&rest[..end])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(words: &[u32], strings: &[u8]) -> Vec<u8> {
        let mut bytes = [MAGIC.to_le_bytes(), [1, 0]].concat();
        let types = words.len() as u32 * 4;
        for word in [24, 0, types, types, strings.len() as u32].iter().chain(words) {
            bytes.extend(word.to_le_bytes());
        }
        [&bytes, strings].concat()
    }

    #[test]
    fn names_count_and_the_order_of_strings_does_not() {
        // An integer `a` of four bytes, and a structure `b` with the member `a` of that type.
        let with = |a: u32, b: u32| [a, 1 << 24, 4, 32, b, 4 << 24 | 1, 4, a, 1, 0];
        let one = types(&section(&with(1, 3), b"\0a\0b\0")).unwrap();
        assert_eq!(one, types(&section(&with(3, 1), b"\0b\0a\0")).unwrap());
        assert_ne!(one, types(&section(&with(1, 3), b"\0a\0c\0")).unwrap());
        assert_eq!(one, "0x1000000 a 4 32\n0x4000001 b 4 a 1 0\n");
    }

    #[test]
    fn what_is_cut_short_is_said() {
        let whole = section(&[1, 1 << 24, 4, 32], b"\0a\0");
        assert!((0..whole.len()).all(|length| types(&whole[..length]).is_err()));
    }
}
