//! Join tokens: what a machine has to know of a cluster before it knows anything, in one word.
//!
//! `A10` and the fingerprint of the cluster's authority say who may be believed; `ID.SECRET`, a bootstrap token, says who asks.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::str::FromStr;

use client::https::pin::Fingerprint;
use thiserror::Error;

/// What a join token begins with: another form would begin otherwise.
const FORM: &str = "A10";
const SEPARATOR: &str = "::";
/// Letters and digits of the two parts of a bootstrap token.
const ID: usize = 6;
const SECRET: usize = 16;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// Bytes from here on would make some letters likelier than others.
const EVEN: u8 = 252;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum TokenError {
    #[error(
        "the token does not name the cluster's authority, so no server could be believed: give all of what `amphipod token create` printed"
    )]
    NoAuthority,
    #[error("this is no join token: A10HASH::ID.SECRET is wanted, as `amphipod token create` prints it")]
    Form,
}

/// Shown whole only by `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    pub id: String,
    pub secret: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub authority: Fingerprint,
    pub token: BootstrapToken,
}

impl BootstrapToken {
    /// A new one.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn random() -> std::io::Result<Self> {
        let letters = random_letters(ID + SECRET)?;
        let (id, secret) = letters.split_at(ID);
        Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
    }
}

fn random_letters(count: usize) -> std::io::Result<String> {
    let mut source = File::open("/dev/urandom")?;
    let (mut text, mut bytes) = (String::with_capacity(count), [0; 32]);
    while text.len() < count {
        source.read_exact(&mut bytes)?;
        let even = bytes.iter().filter(|byte| **byte < EVEN);
        text.extend(even.map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])));
    }
    text.truncate(count);
    Ok(text)
}

/// Whether a text is one part of a token, of so many letters.
fn is_part(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

/// Whether a text is the part of a token that is no secret.
pub fn is_id(text: &str) -> bool {
    is_part(text, ID)
}

impl FromStr for BootstrapToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts = text.split_once('.').filter(|(id, secret)| is_part(id, ID) && is_part(secret, SECRET));
        let (id, secret) = parts.ok_or(TokenError::Form)?;
        Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let Some((authority, token)) = text.split_once(SEPARATOR) else {
            let alone = text.parse::<BootstrapToken>();
            return Err(alone.map_or_else(|error| error, |_| TokenError::NoAuthority));
        };
        let authority = authority.strip_prefix(FORM).ok_or(TokenError::Form)?;
        if authority.is_empty() {
            return Err(TokenError::NoAuthority);
        }
        Ok(Self { authority: authority.parse().map_err(|_| TokenError::Form)?, token: token.parse()? })
    }
}

impl fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.…", self.id)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FORM}{}{SEPARATOR}{}", self.authority, self.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written_and_not_shown_by_the_way() {
        let token = BootstrapToken::random().unwrap();
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert_ne!(token, BootstrapToken::random().unwrap());
        let join = JoinToken { authority: "ab".repeat(32).parse().unwrap(), token };
        assert_eq!(join.to_string().parse(), Ok(join.clone()));
        assert!(!format!("{join:?}").contains(&join.token.secret));
    }

    #[test]
    fn what_names_no_authority_is_no_join_token() {
        let refused = |text: &str| text.parse::<JoinToken>().unwrap_err();
        let hash = "0".repeat(64);
        assert_eq!(refused("abcdef.0123456789abcdef"), TokenError::NoAuthority);
        assert_eq!(refused("A10::abcdef.0123456789abcdef"), TokenError::NoAuthority);
        for other in ["", "abcdef", "A1000::abcdef.0123456789abcdef", &format!("B10{hash}::abcdef.0123456789abcdef")] {
            assert_eq!(refused(other), TokenError::Form, "{other}");
        }
        for token in ["abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "abcdef0123456789abcdef"] {
            assert_eq!(refused(&format!("A10{hash}::{token}")), TokenError::Form, "{token}");
        }
    }
}
