//! Links in answers: paths of this API, with the query that they need. A link to something outside the default namespace
//! names its namespace.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Serialize;

use crate::access::namespaces::Namespaces;

/// Where to read on about a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Links {
    /// This job.
    #[serde(rename = "self")]
    pub itself: String,
    /// Its run's checkpoints.
    pub checkpoints: String,
    /// What it prints.
    pub logs: String,
    /// What the cluster says of it.
    pub events: String,
}

/// Where to read on in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct PageLinks {
    /// The next page; null when this is the last one.
    pub next: Option<String>,
}

// === impl Links ===

impl Links {
    /// The links of a job.
    #[must_use]
    pub fn of(name: &str, namespace: Option<&str>, namespaces: &Namespaces) -> Self {
        let to = |tail: &str| link(&format!("/train/{name}{tail}"), [], namespace, namespaces);
        Self { itself: to(""), checkpoints: to("/checkpoints"), logs: to("/logs"), events: to("/events") }
    }
}

/// A path with its parameters, those that are there.
#[must_use]
pub fn link<'a>(
    path: &str,
    parameters: impl IntoIterator<Item = (&'a str, Option<String>)>,
    namespace: Option<&str>,
    namespaces: &Namespaces,
) -> String {
    let given = parameters.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let mut query: Vec<_> =
        given.map(|(name, value)| format!("{name}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC))).collect();
    query.extend(namespace.map(|namespace| namespaces.query(namespace)).filter(|query| !query.is_empty()));
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_carry_what_they_need_and_no_more() {
        let namespaces = Namespaces::new("training".parse().expect("a name"), vec!["two".parse().expect("a name")]);
        let next = |namespace| {
            link("/train", [("limit", Some("5".to_owned())), ("status", None)], Some(namespace), &namespaces)
        };
        assert_eq!(next("training"), "/train?limit=5");
        assert_eq!(next("two"), "/train?limit=5&namespace=two");
        let odd = link("/train", [("continue", Some("a b&c=é".to_owned()))], None, &namespaces);
        assert_eq!(odd, "/train?continue=a%20b%26c%3D%C3%A9");
        assert_eq!(Links::of("a", Some("training"), &namespaces).logs, "/train/a/logs");
        assert_eq!(Links::of("a", Some("two"), &namespaces).itself, "/train/a?namespace=two");
    }
}
