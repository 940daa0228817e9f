//! A secret that a coordinator and its workers may share, so that no other worker joins.
//!
//! Not here: encryption. Without TLS, a token doesn't protect against anybody who can read the network's traffic.

use std::fmt;
use std::str::FromStr;

/// The longest token.
pub const TOKEN_BYTES_MAX: usize = 1024;

/// A shared secret. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// A text that can't be a token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "it {0}; a token must be one line of 1 to {TOKEN_BYTES_MAX} ASCII letters, digits or punctuation marks, without spaces"
)]
pub struct TokenError(&'static str);

impl FromStr for Token {
    type Err = TokenError;

    /// Trailing line ends, which editors add to files, aren't part of the token.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let word = text.trim_end_matches(['\r', '\n']);
        match word.len() {
            // Whoever read it may have stopped here.
            _ if text.len() > TOKEN_BYTES_MAX + "\r\n".len() => Err(TokenError("is too long")),
            0 => Err(TokenError("is empty")),
            1..=TOKEN_BYTES_MAX if word.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Self(word.to_owned())),
            1..=TOKEN_BYTES_MAX => {
                Err(TokenError("has a space, a line break or another character that is not allowed"))
            }
            _ => Err(TokenError("is too long")),
        }
    }
}

impl Token {
    /// The value of the header `authorization` that carries the token.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether a header carries this token. The time this takes doesn't depend on where they differ.
    pub fn is_carried_by(&self, header: &[u8]) -> bool {
        let own = self.header();
        let differences = own.bytes().zip(header).fold(0, |found, (own, other)| found | (own ^ other));
        own.len() == header.len() && differences == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_and_is_known_again() {
        let token: Token = "s3cret-w0rd\n".parse().unwrap();
        assert!(token.is_carried_by(b"Bearer s3cret-w0rd"));
        for other in [&b"Bearer s3cret-w0rE"[..], b"Bearer s3cret-w0rd2", b"Bearer s3cret-w0r", b"", b"s3cret-w0rd"] {
            assert!(!token.is_carried_by(other));
        }
        assert!(!format!("{token:?}").contains("s3cret"));
        let long = "x".repeat(1025);
        let refused = [("", "is empty"), ("\n", "is empty"), (&long, "is too long")];
        let other = ["two words", "a\nb", "na\u{ef}ve"].map(|text| (text, "has a space, a line break"));
        for (text, why) in refused.into_iter().chain(other) {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
