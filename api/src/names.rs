//! What may be a name, and names made by the server.

/// The characters of a generated suffix: no vowels, nothing that looks like something else.
const SUFFIX: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Five characters made of random bytes.
pub fn suffix(random: [u8; 5]) -> String {
    random.iter().map(|b| char::from(SUFFIX[usize::from(*b) % SUFFIX.len()])).collect()
}
