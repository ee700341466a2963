//! The rules of single names and values, as Kubernetes, the kubelet and Linux have them.

use crate::job::pytorchjob::key;

/// Names that the platform gives to the trainer itself; an argument of that name would contradict it.
const RESERVED_ARGUMENTS: [&str; 15] = [
    "framework",
    "model_id",
    "run_id",
    "num_nodes",
    "gpus_per_node",
    "dataset_uri",
    "checkpoint_base_uri",
    "checkpoint_prefix",
    "checkpoints_uri",
    "logs_uri",
    "config_uri",
    "config_path",
    "resume",
    "resume_from_checkpoint",
    "submission",
];

/// What is wrong with a key of `extra_args`, by code and sentence.
pub(super) fn argument_name(name: &str) -> Option<(&'static str, &'static str)> {
    if RESERVED_ARGUMENTS.contains(&name.replace('-', "_").to_ascii_lowercase().as_str()) {
        return Some(("reserved", "is set by the platform; use the request's own field"));
    }
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let is_good = begins && name.len() <= 256 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    (!is_good)
        .then_some(("format", "must have a name of at most 256 letters, digits, _ and -, beginning with a letter"))
}

/// What is wrong with a label.
pub(super) fn label(name: &str, value: &str) -> Option<(&'static str, String)> {
    metadata_key(name).or_else(|| {
        (!is_label_value(value)).then(|| {
            let detail =
                "must have a value of at most 63 of A-Z a-z 0-9 . _ -, beginning and ending with a letter or digit";
            ("format", detail.to_owned())
        })
    })
}

/// What is wrong with the key of a label or annotation.
pub(super) fn metadata_key(key: &str) -> Option<(&'static str, String)> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if name.is_empty() || !is_label_value(name) || prefix.is_some_and(|prefix| !is_subdomain(prefix)) {
        let detail = "must have a key as Kubernetes takes it: an optional DNS name and /, then 1 to 63 of A-Z a-z 0-9 . _ -, \
                      beginning and ending with a letter or digit";
        return Some(("format", detail.to_owned()));
    }
    if key == self::key::QUEUE {
        return Some(("reserved", "is set from the field `queue`; use that".to_owned()));
    }
    let is_reserved = |prefix: &str| {
        key.starts_with(self::key::PLATFORM_PREFIX)
            || ["kubernetes.io", "k8s.io", "kubeflow.org"]
                .iter()
                .any(|domain| prefix.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
    };
    prefix
        .is_some_and(is_reserved)
        .then(|| ("reserved", "has a prefix that is Kubernetes' or the platform's own; use your own domain".to_owned()))
}

/// A label's value (Kubernetes, `IsValidLabelValue`): empty, or at most 63 characters with an alphanumeric at both ends.
pub(super) fn is_label_value(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// A DNS-1123 subdomain: what most names of Kubernetes objects are.
pub(super) fn is_subdomain(text: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let label = |label: &str| {
        let bytes = label.as_bytes();
        alphanumeric(bytes.first())
            && alphanumeric(bytes.last())
            && bytes.iter().all(|byte| alphanumeric(Some(byte)) || *byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_kubernetes_labels_of_other_domains() {
        let long = "a".repeat(64);
        for (key, value, code) in [
            ("team", "research", None),
            ("example.com/team", "A.b_c-9", None),
            ("example.com/team", "", None),
            ("kubernetes.io.example.com/x", "a", None),
            ("notkubernetes.io/x", "a", None),
            ("example.com/team", "no spaces", Some("format")),
            ("example.com/team", long.as_str(), Some("format")),
            (long.as_str(), "a", Some("format")),
            ("", "a", Some("format")),
            ("/x", "a", Some("format")),
            ("Example.com/x", "a", Some("format")),
            ("a/b/c", "a", Some("format")),
            ("example.com/", "a", Some("format")),
            ("_a", "a", Some("format")),
            ("trainer.deepfinery/run-id", "a", Some("reserved")),
            ("kubernetes.io/x", "a", Some("reserved")),
            ("app.kubernetes.io/name", "a", Some("reserved")),
            ("training.kubeflow.org/job-name", "a", Some("reserved")),
            ("scheduling.k8s.io/x", "a", Some("reserved")),
            ("kueue.x-k8s.io/queue-name", "a", Some("reserved")),
        ] {
            assert_eq!(label(key, value).map(|(code, _)| code), code, "{key}={value}");
        }
    }
}
