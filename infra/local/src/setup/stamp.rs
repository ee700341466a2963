//! Steps that are carried out once. A step is done while its stamp holds the hash of its present inputs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Folders below an input that hold no sources.
const SKIPPED: [&str; 6] = ["target", "__pycache__", ".venv", ".pytest_cache", ".ruff_cache", "tests"];

/// The hash of a step's inputs, and the file with the hash from when the step was last carried out.
#[derive(Debug)]
pub(crate) struct Stamp {
    file: PathBuf,
    hash: String,
}

impl Stamp {
    /// Hashes files, folders and plain settings. A file that is missing counts as missing.
    pub(crate) fn new(file: PathBuf, inputs: &[PathBuf], settings: &[&str]) -> Result<Self> {
        let mut hasher = Sha256::new();
        for input in inputs {
            add(&mut hasher, input)?;
        }
        for setting in settings {
            add_bytes(&mut hasher, setting.as_bytes());
        }
        Ok(Self { file, hash: hex(&hasher.finalize()) })
    }

    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    pub(crate) fn is_current(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|text| text == self.hash)
    }

    /// Carries out the step. There is no stamp meanwhile, so a step that is interrupted is repeated.
    pub(crate) async fn make(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        let _ = fs::remove_file(&self.file);
        work.await?;
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.file, &self.hash).with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// The first eight hexadecimal digits of a text's hash: a short name for a long one.
pub(crate) fn short_hash(text: &str) -> String {
    hex(&Sha256::digest(text)).chars().take(8).collect()
}

fn add(hasher: &mut Sha256, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.is_dir() {
        if SKIPPED.contains(&name.as_ref()) {
            return Ok(());
        }
        let mut entries =
            fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
        entries.sort();
        add_bytes(hasher, name.as_bytes());
        return entries.iter().try_for_each(|entry| add(hasher, entry));
    }
    add_bytes(hasher, name.as_bytes());
    match fs::read(path) {
        Ok(content) => add_bytes(hasher, &content),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => add_bytes(hasher, b"absent"),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    Ok(())
}

/// Hashes the length too, so that bytes cannot move from one input to the next unnoticed.
fn add_bytes(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update(bytes.len().to_le_bytes());
    hasher.update(bytes);
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_step_is_done_until_its_inputs_change() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("sources");
        let stamp = || Stamp::new(folder.path().join("stamps/step"), std::slice::from_ref(&input), &["a"]).unwrap();
        stamp().make(async { Ok(()) }).await.unwrap();
        assert!(stamp().is_current(), "an absent input stays absent");
        fs::create_dir(&input).unwrap();
        fs::write(input.join("file"), "1").unwrap();
        assert!(!stamp().is_current(), "it appeared");
        stamp().make(async { Ok(()) }).await.unwrap();
        assert!(stamp().is_current());
        fs::write(input.join("file"), "2").unwrap();
        assert!(!stamp().is_current(), "its content changed");
        fs::write(input.join("file"), "1").unwrap();
        fs::rename(input.join("file"), input.join("other")).unwrap();
        assert!(!stamp().is_current(), "its name changed");
    }

    #[tokio::test]
    async fn a_step_that_fails_is_not_done_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let stamp = Stamp::new(folder.path().join("step"), &[], &[]).unwrap();
        stamp.make(async { Ok(()) }).await.unwrap();
        assert!(stamp.make(async { anyhow::bail!("no") }).await.is_err());
        assert!(!stamp.is_current());
    }
}
