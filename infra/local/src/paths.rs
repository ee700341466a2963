//! Where the twin keeps its files: every path below the checkout that more than one file of this crate uses.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The checkout, and `.local` below it. `twin clean` deletes the state in `.local` and keeps the tools.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Finds the checkout above the working directory, and makes it the working directory. That keeps the path of the
    /// control socket short: the path of a Unix socket has at most 107 bytes.
    pub(crate) fn find() -> Result<Self> {
        let start = std::env::current_dir().context("no working directory")?;
        let root = start
            .ancestors()
            .find(|folder| folder.join("infra/local/go.mod").is_file())
            .context("not inside a checkout: no folder above this one holds infra/local/go.mod")?
            .to_path_buf();
        std::env::set_current_dir(&root)?;
        Ok(Self { root })
    }

    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path of the checkout itself, such as `template.yaml`.
    pub(crate) fn source(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) fn local(&self) -> PathBuf {
        self.root.join(".local")
    }

    pub(crate) fn bin(&self, name: &str) -> PathBuf {
        self.local().join("bin").join(name)
    }

    pub(crate) fn venv(&self, name: &str) -> PathBuf {
        self.local().join("venv").join(name)
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.local().join("models")
    }

    pub(crate) fn pods(&self) -> PathBuf {
        self.local().join("pods")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.local().join("logs")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Hashes of what each tool was made from.
    pub(crate) fn tool_stamp(&self, step: &str) -> PathBuf {
        self.local().join("stamps").join(step)
    }

    /// Everything that `twin clean` deletes.
    pub(crate) fn state(&self) -> PathBuf {
        self.local().join("state")
    }

    /// Hashes of what the running state was made from.
    pub(crate) fn state_stamp(&self, step: &str) -> PathBuf {
        self.state().join("stamps").join(step)
    }

    pub(crate) fn pki(&self, file: &str) -> PathBuf {
        self.state().join("pki").join(file)
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.state().join("admin.kubeconfig")
    }

    /// How the API server reaches the webhook that reviews tokens.
    pub(crate) fn token_review_kubeconfig(&self) -> PathBuf {
        self.state().join("token-review.kubeconfig")
    }

    /// The home folder of the components and of the tools that are given no other one.
    pub(crate) fn home(&self) -> PathBuf {
        self.state().join("home")
    }

    /// The temporary folder of the operator, whose webhook server reads its certificate there.
    pub(crate) fn operator(&self) -> PathBuf {
        self.state().join("operator")
    }

    /// Everything that `MiniStack` stores.
    pub(crate) fn ministack(&self) -> PathBuf {
        self.state().join("ministack")
    }

    /// What `MiniStack` stores of each AWS service when it ends.
    pub(crate) fn ministack_state(&self) -> PathBuf {
        self.ministack().join("state")
    }

    /// The settings that a shell needs to use the twin. The file is written last, so it also marks the twin as ready.
    pub(crate) fn env(&self) -> PathBuf {
        self.local().join("env")
    }

    /// The lock that every process of the twin holds.
    pub(crate) fn lock(&self) -> PathBuf {
        self.local().join("lock")
    }

    /// The control socket, as a relative path, see [`Paths::find`].
    pub(crate) fn socket() -> PathBuf {
        PathBuf::from(".local/state/twin.sock")
    }
}

/// A binary of this crate. Cargo puts all of them into one folder.
pub(crate) fn sibling(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}
