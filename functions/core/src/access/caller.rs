//! Who calls, and what the caller's token may do.

use std::collections::HashSet;

use serde::Deserialize;

use training_run::names::Namespace;

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Create, replace, cancel, suspend and resume jobs.
    Submit,
    /// Read jobs, checkpoints, logs and events.
    Read,
}

/// Who calls: what the token that was sent may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's id; `None` for the single token of a deployment.
    pub id: Option<String>,
    /// `None`: all.
    pub(crate) scopes: Option<HashSet<Scope>>,
    /// `None`: all that the deployment serves.
    pub(crate) namespaces: Option<HashSet<Namespace>>,
}

// === impl Caller ===

impl Caller {
    /// Who may do all in every namespace.
    #[must_use]
    pub fn unrestricted() -> Self {
        Self { id: None, scopes: None, namespaces: None }
    }

    /// Who may do all in these namespaces.
    #[cfg(test)]
    pub(crate) fn limited_to(namespaces: impl IntoIterator<Item = Namespace>) -> Self {
        Self { namespaces: Some(namespaces.into_iter().collect()), ..Self::unrestricted() }
    }

    /// Whether the caller may do such things.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.as_ref().is_none_or(|scopes| scopes.contains(&scope))
    }

    /// Whether there is a namespace for the caller.
    #[must_use]
    pub fn sees(&self, namespace: &Namespace) -> bool {
        self.namespaces.as_ref().is_none_or(|namespaces| namespaces.contains(namespace))
    }
}
