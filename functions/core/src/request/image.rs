//! Container image references, and the list of those that callers may run.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// A reference `[host[:port]/]path[:tag][@sha256:digest]`.
/// Source: distribution's `reference` package, which container runtimes share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference(String);

/// The images that callers may name.
#[derive(Clone, Debug, Default)]
pub struct AllowedImages(Vec<String>);

/// Not an image reference.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("must be an image reference such as `registry/team/trainer:1.2` or `trainer@sha256:<64 hex digits>`")]
pub struct ImageError;

// === impl ImageReference ===

impl ImageReference {
    /// The text of the reference.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The repository: the reference without tag and digest.
    fn name(&self) -> &str {
        without_tag_and_digest(&self.0)
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageReference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let path = without_tag_and_digest(text);
        let rest = text.strip_prefix(path).unwrap_or_default();
        let (tag, digest) = rest.split_once('@').map_or((rest, None), |(tag, digest)| (tag, Some(digest)));
        let tag = tag.strip_prefix(':');
        let mut components = path.split('/');
        let first = components.next().unwrap_or_default();
        let rest_is_path = components.clone().all(is_path_component);
        let first_is_good = is_path_component(first) || (components.next().is_some() && is_host(first));
        let good = text.len() <= 512
            && first_is_good
            && rest_is_path
            && tag.is_none_or(is_tag)
            && digest.is_none_or(is_sha256);
        if good { Ok(Self(text.to_owned())) } else { Err(ImageError) }
    }
}

// === impl AllowedImages ===

impl AllowedImages {
    /// Read a comma-separated list. An entry that ends in a slash allows every image below it, one with a tag or digest
    /// that image alone, and any other the repository of that name with every tag.
    #[must_use]
    pub fn from_list(list: &str) -> Self {
        Self(list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect())
    }

    /// Whether an entry allows an image. Whole parts are compared: a text that begins alike can be another registry
    /// (`stub:5000/x` is not of `stub`), another repository, or another image of an allowed tag.
    #[must_use]
    pub fn allow(&self, image: &ImageReference) -> bool {
        self.0.iter().any(|entry| {
            if entry.ends_with('/') {
                image.name().starts_with(entry.as_str())
            } else if without_tag_and_digest(entry) == entry {
                image.name() == entry
            } else {
                image.0 == *entry
            }
        })
    }
}

impl fmt::Display for AllowedImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

fn without_tag_and_digest(text: &str) -> &str {
    let text = text.split_once('@').map_or(text, |(name, _)| name);
    let last = text.rfind('/').map_or(0, |slash| slash + 1);
    // A colon before the last slash is a port's.
    text.rfind(':').filter(|colon| *colon >= last).and_then(|colon| text.get(..colon)).unwrap_or(text)
}

fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = component.as_bytes();
    let separators_are_single =
        !["..", "._", "_.", ".-", "-.", "_-", "-_", "___"].iter().any(|pair| component.contains(pair));
    alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && separators_are_single
        && bytes.iter().all(|byte| alphanumeric(Some(byte)) || b"._-".contains(byte))
}

fn is_host(component: &str) -> bool {
    let (host, port) = component.split_once(':').map_or((component, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}

fn is_sha256(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_parse_as_container_runtimes_read_them() {
        let digest = format!("team/trainer:1@sha256:{}", "0".repeat(64));
        for good in ["stub", "trainer:local", "host.example:5000/a/b-c:v1.2", "localhost/a", "a/b__c/d--e", &digest] {
            assert!(good.parse::<ImageReference>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "Trainer",
            "a b",
            "a:",
            "a:b:c",
            "/a",
            "a/",
            "a//b",
            "-a",
            "a@sha256:0",
            "a:tag$(X)",
            "host:port/a",
            "a\n",
        ] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_entry_allows_whole_parts_only() {
        let allowed =
            AllowedImages::from_list("team/trainer, stub ,mirror.example/,trainer:2,host:5000/a,pinned:1@sha256:x");
        let allows = |image: &str| allowed.allow(&image.parse().expect("a reference"));
        let digest = format!("@sha256:{}", "1".repeat(64));
        for good in [
            "team/trainer",
            "team/trainer:2",
            &format!("team/trainer{digest}"),
            "stub",
            "stub:any",
            "mirror.example/any/thing:1",
            "trainer:2",
            "host:5000/a:1",
        ] {
            assert!(allows(good), "{good}");
        }
        for bad in [
            "team/trainer-of-others",
            "team/trainer/cuda",
            "stubborn",
            "stub:5000/evil/x:1",
            "stub/evil:1",
            "mirror.example.evil/x",
            "mirror.example",
            "trainer",
            "trainer:20",
            "trainer:2/evil/x",
            &format!("trainer:2{digest}"),
            &format!("trainer{digest}"),
            "host:5000/ab",
            "host:50001/a",
            "pinned:1",
            "other",
        ] {
            assert!(!allows(bad), "{bad}");
        }
        assert!(!AllowedImages::from_list("").allow(&"stub".parse().expect("a reference")));
    }
}
