//! The images that this node can run. There is no registry: the trainer's Python environment and the stub program stand
//! for their images. Every other pull fails as it would for an image that does not exist.

use std::path::Path;

use crate::config::Config;

/// The repository whose every tag is the stub program.
const STUB_REPOSITORY: &str = "stub";

/// An image that the node can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// The trainer's Python environment.
    Trainer,
    /// The stub program, whatever the command says.
    Stub,
}

/// Finds an image. The error is the text of a failed pull.
pub(crate) fn pull(config: &Config, image: &str) -> Result<Image, String> {
    match identify(&config.trainer_image, image) {
        Some(Image::Trainer) if !is_executable(&config.trainer_bin.join("torchrun")) => Err(format!(
            "failed to pull image \"{image}\": its Python environment {} is not there; `make up` builds it",
            config.trainer_bin.display()
        )),
        Some(known) => Ok(known),
        None => Err(format!(
            "failed to pull and unpack image \"{image}\": failed to resolve reference \"{image}\": not found \
             (the twin knows {} and {STUB_REPOSITORY})",
            config.trainer_image
        )),
    }
}

/// Whether a container of this image needs one of the few places for trainers.
pub(crate) fn is_trainer(config: &Config, image: &str) -> bool {
    identify(&config.trainer_image, image) == Some(Image::Trainer)
}

fn identify(trainer_image: &str, image: &str) -> Option<Image> {
    if image == trainer_image {
        Some(Image::Trainer)
    } else if repository(image) == STUB_REPOSITORY {
        Some(Image::Stub)
    } else {
        None
    }
}

/// The image's name without digest and tag. A colon before a slash belongs to the port of a registry.
fn repository(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// Whether a file exists and may be executed.
pub(crate) fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_apart_by_name() {
        let cases = [
            ("the trainer", "trainer:local", Some(Image::Trainer)),
            ("another tag of it", "trainer:other", None),
            ("stub without a tag", "stub", Some(Image::Stub)),
            ("stub with a tag", "stub:1", Some(Image::Stub)),
            ("stub with a digest", "stub:1@sha256:00", Some(Image::Stub)),
            ("a path that ends in stub", "example.invalid/stub", None),
            ("a registry with a port", "localhost:5000/stub", None),
            ("a registry called stub", "stub:5000/trainer", None),
            ("something else", "unknown.invalid/image:1", None),
            ("empty", "", None),
        ];
        for (label, image, expected) in cases {
            assert_eq!(identify("trainer:local", image), expected, "{label}");
        }
    }
}
