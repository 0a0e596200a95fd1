//! Errors as one line of text, for those who read them far away: in an event, a log, an answer.
//!
//! A crate of its own because those who tell of errors (the pod process, the agent, the client, the node) share nothing else.

use std::error::Error;

/// An error with all its causes; one that says what its cause says is not followed by it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Told(&'static str, Option<Box<Told>>);

    impl fmt::Display for Told {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Told {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    fn told(text: &'static str, cause: impl Into<Option<Told>>) -> Told {
        Told(text, cause.into().map(Box::new))
    }

    #[test]
    fn all_causes_are_told_once() {
        assert_eq!(chain(&told("a", None)), "a");
        assert_eq!(
            chain(&told("open the log", told("write it", told("no space", None)))),
            "open the log: write it: no space"
        );
        assert_eq!(chain(&told("connect: refused", told("refused", told("os", None)))), "connect: refused: os");
    }
}
