//! The query of a request: each parameter is taken by the route that knows it, and what is left over is refused, so that
//! a misspelt `?dry_run=true` never creates a job.

use std::{fmt::Display, str::FromStr};

use training_run::text::bounded;

use crate::api::{
    problem::{FieldError, Problem},
    route::Count,
};

/// Parameters that are still to be taken, and the rules found broken so far.
#[derive(Debug)]
pub struct Query {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
    errors: Vec<FieldError>,
}

// === impl Query ===

impl Query {
    /// The decoded parameters of a request.
    pub fn new<N: Into<String>, V: Into<String>>(parameters: impl IntoIterator<Item = (N, V)>) -> Self {
        let left = parameters.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { left, known: Vec::new(), errors: Vec::new() }
    }

    /// Take a parameter as text.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let (mine, left) = std::mem::take(&mut self.left).into_iter().partition(|(given, _)| given == name);
        self.left = left;
        let mut mine: Vec<(String, String)> = mine;
        if mine.len() > 1 {
            self.refuse(name, "duplicate", "is sent more than once; send it once");
        }
        mine.pop().map(|(_, value)| value)
    }

    /// Take a parameter as a value; the text of its error says what it must be.
    pub fn value<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Option<T> {
        let text = self.text(name)?;
        text.parse().map_err(|error: T::Err| self.refuse(name, "format", error.to_string())).ok()
    }

    /// Take a whole number; its default where it is absent or refused.
    pub fn number(&mut self, name: &'static str, count: Count) -> Option<u32> {
        self.number_within(name, count.min, count.max).or(count.default)
    }

    fn number_within(&mut self, name: &'static str, min: u32, max: u32) -> Option<u32> {
        let text = self.text(name)?;
        // `parse` alone would accept a plus sign.
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|number| is_plain && (min..=max).contains(number));
        if number.is_none() {
            self.refuse(name, "range", format!("must be a whole number from {min} to {max}"));
        }
        number
    }

    /// Take a parameter that is one of some words.
    pub fn word<T: Copy, const N: usize>(&mut self, name: &'static str, words: [(&str, T); N]) -> Option<T> {
        let text = self.text(name)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            self.refuse(name, "format", format!("must be {}", words.join(" or ")));
        }
        found
    }

    /// Note a broken rule of a parameter.
    pub fn refuse(&mut self, name: &str, code: &'static str, detail: impl Into<String>) {
        self.errors.push(FieldError { pointer: format!("?{}", bounded(name, 64)), code, detail: detail.into() });
    }

    /// Refuses every parameter that was not read.
    ///
    /// # Errors
    /// `invalid_request` with every broken rule.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.left) {
            let known =
                if self.known.is_empty() { "none".to_owned() } else { format!("`{}`", self.known.join("`, `")) };
            self.refuse(&name, "unknown_parameter", format!("is not a parameter of this route; the route has {known}"));
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::invalid(self.errors)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::route::LIMIT;
    use training_run::names::Step;

    /// What is refused of `?limit=&before=&mode=`, as `parameter code`.
    fn refused(parameters: &[(&str, &str)]) -> Vec<String> {
        let mut query = Query::new(parameters.iter().copied());
        query.number("limit", LIMIT);
        query.value::<Step>("before");
        query.word("mode", [("min", 1), ("max", 2)]);
        let problem = query.finish().err();
        let errors = problem.into_iter().flat_map(|problem| problem.errors);
        errors.map(|error| format!("{} {}", error.pointer, error.code)).collect()
    }

    #[test]
    fn every_broken_rule_is_named() {
        assert_eq!(refused(&[]), [""; 0]);
        assert_eq!(refused(&[("limit", "500"), ("before", "7"), ("mode", "max")]), [""; 0]);
        assert_eq!(
            refused(&[("limit", "0"), ("before", "x"), ("mode", ""), ("Limit", "1")]),
            ["?limit range", "?before format", "?mode format", "?Limit unknown_parameter"]
        );
        assert_eq!(refused(&[("limit", "1"), ("limit", "2")]), ["?limit duplicate"]);
        for limit in ["-1", "+1", " 1", "1.0", "", "501", "99999999999"] {
            assert_eq!(refused(&[("limit", limit)]), ["?limit range"], "{limit:?}");
        }
    }

    #[test]
    fn an_unknown_parameter_is_told_the_known_ones() {
        let mut query = Query::new([("dryrun", "true")]);
        query.text("dry_run");
        query.text("restart");
        let problem = query.finish().expect_err("unknown");
        assert!(problem.detail.ends_with("the route has `dry_run`, `restart`"), "{}", problem.detail);
    }
}
