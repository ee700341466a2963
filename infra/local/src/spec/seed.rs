//! Values that a component finds in its stored state without having stored them.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::private_file::write_private;

/// A JSON file of a component's state, and the values that are set in it before each start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seed {
    pub(crate) file: PathBuf,
    /// The content of a new file, before the values are set.
    pub(crate) empty: Value,
    /// Each value, and the keys that lead to it.
    pub(crate) values: Vec<(Vec<String>, Value)>,
}

// === impl Seed ===

impl Seed {
    /// Sets the values and leaves the rest of the file as it is.
    ///
    /// The component must be stopped: it reads the file at its start and writes it at its end.
    pub(crate) fn write(&self) -> Result<()> {
        let mut state: Value = match fs::read(&self.file) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", self.file.display()))?
            }
            Err(_) => self.empty.clone(),
        };
        for (keys, value) in &self.values {
            let place = keys.iter().fold(&mut state, |place, key| &mut place[key.as_str()]);
            *place = value.clone();
        }
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        write_private(&self.file, &state.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_set_and_the_rest_of_the_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/eks.json");
        let keys = |keys: &[&str]| keys.iter().map(ToString::to_string).collect();
        let seed = Seed {
            file: file.clone(),
            empty: json!({"format": 3}),
            values: vec![
                (keys(&["payload", "scoped"]), json!(true)),
                (keys(&["payload", "data", "a"]), json!({"b": 1})),
            ],
        };
        let read = || serde_json::from_slice::<Value>(&fs::read(&file).unwrap()).unwrap();
        seed.write().unwrap();
        assert_eq!(read(), json!({"format": 3, "payload": {"scoped": true, "data": {"a": {"b": 1}}}}));

        let stored = json!({"format": 3, "payload": {"entries": [1], "data": {"a": {"c": 2}, "z": 3}}});
        fs::write(&file, stored.to_string()).unwrap();
        seed.write().unwrap();
        let expected = json!({"entries": [1], "data": {"a": {"b": 1}, "z": 3}, "scoped": true});
        assert_eq!(read()["payload"], expected);

        fs::write(&file, "").unwrap();
        assert!(seed.write().is_err(), "a damaged state is not replaced");
    }
}
