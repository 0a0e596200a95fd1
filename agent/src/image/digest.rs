//! What content is known by. The only form there is here is safe as a file name, and nothing else becomes one.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{0:?} is no digest of the form sha256:<64 hexadecimal digits>")]
pub struct BadDigest(String);

const ALGORITHM: &str = "sha256:";

impl Digest {
    pub fn of(content: &[u8]) -> Digest {
        Digest::finished(Sha256::new_with_prefix(content))
    }

    pub fn finished(hash: Sha256) -> Digest {
        Digest(format!("{ALGORITHM}{:x}", hash.finalize()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits: a file name.
    pub fn hex(&self) -> &str {
        &self.0[ALGORITHM.len()..]
    }
}

impl std::str::FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Digest, BadDigest> {
        let hex = text.strip_prefix(ALGORITHM).unwrap_or_default();
        let good = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Digest(text.to_owned())) } else { Err(BadDigest(text.chars().take(100).collect())) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_form() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().hex(), "0a".repeat(32));
        let nul = format!("sha256:{}\0", "a".repeat(63));
        let upper = format!("sha256:{}", "A".repeat(64));
        let long = format!("sha256:{}", "a".repeat(65));
        let path = format!("sha256:{}", "../".repeat(21) + "a");
        for bad in ["", "sha256:", "sha256:/", "sha256:..", "/", "sha512:00", &nul, &upper, &long, &path] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
