//! Settings of a function, read once at start. Where they come from is the caller's business (`std::env::var` in the
//! mains), so that this stays pure.

use std::{fmt::Display, str::FromStr};

use thiserror::Error;

/// A source of named settings; an empty one counts as not set, as CloudFormation cannot leave a variable out.
pub struct Settings<F>(F);

/// Why the function cannot start.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingError {
    /// A setting without a default is not there.
    #[error("the environment variable {0} is not set")]
    Missing(&'static str),
    /// A setting does not parse.
    #[error("the environment variable {name} is not usable: {reason}")]
    Bad {
        /// Name of the variable.
        name: &'static str,
        /// What it must be.
        reason: String,
    },
}

// === impl Settings ===

impl<F: Fn(&'static str) -> Option<String>> Settings<F> {
    /// Read settings through a function from name to value.
    pub fn new(source: F) -> Self {
        Self(source)
    }

    /// A setting that may be absent.
    ///
    /// # Errors
    /// It is there and does not parse.
    pub fn optional<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<Option<T>, SettingError> {
        let Some(text) = (self.0)(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|error: T::Err| SettingError::Bad { name, reason: error.to_string() })
    }

    /// A setting that must be there.
    ///
    /// # Errors
    /// It is absent or does not parse.
    pub fn required<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T, SettingError> {
        self.optional(name)?.ok_or(SettingError::Missing(name))
    }

    /// A comma-separated setting with at least one part.
    ///
    /// # Errors
    /// It is absent, or a part does not parse.
    pub fn list<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<Vec<T>, SettingError> {
        let list = self.list_or_none(name)?;
        if list.is_empty() { Err(SettingError::Missing(name)) } else { Ok(list) }
    }

    /// A comma-separated setting that may be absent.
    ///
    /// # Errors
    /// A part does not parse.
    pub fn list_or_none<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<Vec<T>, SettingError> {
        let Some(text) = self.optional::<String>(name)? else { return Ok(Vec::new()) };
        text.split(',')
            .map(|part| {
                part.trim().parse().map_err(|error: T::Err| SettingError::Bad { name, reason: error.to_string() })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_setting_names_its_variable() {
        let settings = Settings::new(|name| match name {
            "EMPTY" => Some(String::new()),
            "NUMBER" => Some("x".to_owned()),
            "LIST" => Some("1, 2".to_owned()),
            _ => None,
        });
        assert_eq!(settings.required::<u32>("ABSENT"), Err(SettingError::Missing("ABSENT")));
        assert_eq!(settings.required::<u32>("EMPTY"), Err(SettingError::Missing("EMPTY")));
        assert!(settings.required::<u32>("NUMBER").expect_err("not a number").to_string().contains("NUMBER"));
        assert_eq!(settings.list::<u32>("LIST"), Ok(vec![1, 2]));
        assert_eq!(settings.optional::<u32>("EMPTY"), Ok(None));
    }
}
