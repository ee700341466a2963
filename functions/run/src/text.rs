//! Texts that others wrote, cut to what is passed on.

/// Longest message of the cluster or the trainer that is passed on, in characters.
pub const MAX_MESSAGE: usize = 1024;

/// The beginning of a text that a caller sent, so that a hostile one cannot fill an answer.
#[must_use]
pub fn bounded(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}
