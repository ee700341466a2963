//! Guessing which known word a misspelt one was meant to be.

use training_run::text::bounded;

/// Likeness (0 to 1) from which an unknown word is taken for a misspelt one.
const LIKENESS: f64 = 0.6;

/// The known word that an unknown one is most like, if it is like one.
#[must_use]
pub fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let word = bounded(word, 64).to_ascii_lowercase();
    known
        .iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(&word, known), *known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > LIKENESS)
        .map(|(_, known)| known)
}
