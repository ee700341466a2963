//! Which namespaces the deployment serves. A namespace is the border between teams: a caller names one of the allowed ones
//! or gets the default.

use training_run::names::Namespace;

use crate::{
    access::caller::Caller,
    api::problem::{Code, Problem},
};

/// The namespaces that callers may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces {
    /// The one of a request that names none.
    pub default: Namespace,
    allowed: Vec<Namespace>,
}

// === impl Namespaces ===

impl Namespaces {
    /// The default and the others; the default is always allowed.
    #[must_use]
    pub fn new(default: Namespace, allowed: Vec<Namespace>) -> Self {
        Self { default, allowed }
    }

    /// The namespace that a request is for, which the caller may not see: that is for the route to judge.
    ///
    /// # Errors
    /// `namespace_not_allowed`, in the same words for a namespace that is not served and one that does not exist.
    pub fn find(&self, wanted: Option<&str>, caller: &Caller) -> Result<Namespace, Problem> {
        let Some(wanted) = wanted else { return Ok(self.default.clone()) };
        let found = self.all().find(|namespace| namespace.as_str() == wanted);
        found.cloned().ok_or_else(|| self.not_allowed(caller))
    }

    /// The namespace that a request is for.
    ///
    /// # Errors
    /// `namespace_not_allowed`, in the same words also for one that others may see.
    pub fn choose(&self, wanted: Option<&str>, caller: &Caller) -> Result<Namespace, Problem> {
        let found = self.find(wanted, caller)?;
        if caller.sees(&found) { Ok(found) } else { Err(self.not_allowed(caller)) }
    }

    /// Names those only that are there for the caller.
    fn not_allowed(&self, caller: &Caller) -> Problem {
        let seen: Vec<_> =
            self.all().filter(|namespace| caller.sees(namespace)).map(|namespace| format!("`{namespace}`")).collect();
        let detail = if seen.is_empty() {
            "your token has access to none of the namespaces that this service serves".to_owned()
        } else {
            format!("your token has no access to this namespace here; choose one of {}", seen.join(", "))
        };
        Problem::new(Code::NamespaceNotAllowed, detail)
    }

    /// What a link to something in this namespace must end in: nothing for the default one.
    #[must_use]
    pub fn query(&self, namespace: &str) -> String {
        if namespace == self.default.as_str() { String::new() } else { format!("namespace={namespace}") }
    }

    fn all(&self) -> impl Iterator<Item = &Namespace> {
        std::iter::once(&self.default).chain(self.allowed.iter().filter(|namespace| **namespace != self.default))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(text: &str) -> Namespace {
        text.parse().expect("a namespace")
    }

    #[test]
    fn only_allowed_namespaces_can_be_chosen() {
        let namespaces = Namespaces::new(namespace("training"), vec![namespace("training"), namespace("two")]);
        let anyone = Caller::unrestricted();
        assert_eq!(namespaces.choose(None, &anyone), Ok(namespace("training")));
        assert_eq!(namespaces.choose(Some("training"), &anyone), Ok(namespace("training")));
        assert_eq!(namespaces.choose(Some("two"), &anyone), Ok(namespace("two")));
        for bad in ["three", "", "kube-system", "TRAINING", "two,training"] {
            let problem = namespaces.choose(Some(bad), &anyone).expect_err(bad);
            assert_eq!(problem.code, Code::NamespaceNotAllowed);
            assert!(problem.detail.ends_with("`training`, `two`"), "{}", problem.detail);
        }
    }

    #[test]
    fn a_limited_caller_learns_of_its_own_namespaces_only() {
        let namespaces = Namespaces::new(namespace("training"), vec![namespace("two"), namespace("three")]);
        for (seen, told) in [
            (&["two"][..], "choose one of `two`"),
            (&["three", "two"], "`two`, `three`"),
            (&["other"], "none of the namespaces"),
        ] {
            let caller = Caller::limited_to(seen.iter().map(|name| namespace(name)));
            let said: Vec<_> = [None, Some("training"), Some("nope"), Some("other")]
                .map(|wanted| namespaces.choose(wanted, &caller).expect_err("not seen"))
                .into();
            assert!(said.windows(2).all(|pair| pair[0] == pair[1]), "{said:?}");
            assert!(said[0].detail.contains(told) && !said[0].detail.contains("training"), "{}", said[0].detail);
        }
    }

    #[test]
    fn links_name_every_namespace_but_the_default() {
        let namespaces = Namespaces::new(namespace("training"), vec![namespace("two")]);
        assert_eq!(namespaces.query("training"), "");
        assert_eq!(namespaces.query("two"), "namespace=two");
    }
}
