//! How events tell that a connection did not come about.

/// A connection that did not come about, in the words that events have for it.
pub(super) fn dial_error(address: &str, error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    // The library adds the number, and begins with a capital.
    let words = text.split(" (os error").next().unwrap_or_default();
    let mut letters = words.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    format!("dial tcp {address}: connect: {}{}", first.map(String::from).unwrap_or_default(), letters.as_str())
}
