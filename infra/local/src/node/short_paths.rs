//! Short paths to the volumes of pods: links in `/tmp`. A program makes sockets in its temporary folder, and the path of a
//! socket may have 107 bytes, which the path of a pod's folder alone may take.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

const FOLDER: &str = "/tmp";
const PREFIX: &str = "twin-";
/// Characters of a pod's uid. That is random, so they are enough to tell the pods of a machine apart.
const UID_CHARACTERS: usize = 13;

/// The short path of a pod's folder, whose name ends in the pod's uid.
pub(crate) fn of(pod_folder: &Path) -> PathBuf {
    let name = pod_folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let uid = name.rsplit('_').next().unwrap_or_default();
    Path::new(FOLDER).join(format!("{PREFIX}{}", uid.chars().take(UID_CHARACTERS).collect::<String>()))
}

/// Makes a short path lead to a folder.
pub(crate) fn make(short: &Path, folder: &Path) -> io::Result<()> {
    if fs::read_link(short).is_ok_and(|target| target == folder) {
        return Ok(());
    }
    match fs::remove_file(short) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    symlink(folder, short)
}

/// Removes the short paths to folders of pods that are gone.
pub(crate) fn remove_dangling(pods_dir: &Path) {
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let target = is_ours.then(|| fs::read_link(entry.path()).ok()).flatten();
        if target.is_some_and(|target| target.starts_with(pods_dir) && !target.exists()) {
            drop(fs::remove_file(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_path_leads_to_a_pods_volumes_until_these_are_gone() {
        let pods = tempfile::tempdir().unwrap();
        let [pod, other] = ["1", "2"].map(|first| {
            let uid = format!("{first}{}-0000-4000-8000-000000000000", std::process::id());
            pods.path().join(format!("training_{}_{uid}", "a-long-name-of-a-job".repeat(5)))
        });
        let short = of(&pod);
        assert!(short.as_os_str().len() < 30 && short != of(&other), "{short:?}");
        for folder in [&other, &pod, &pod] {
            fs::create_dir_all(folder).unwrap();
            make(&short, folder).unwrap();
            assert_eq!(short.canonicalize().unwrap(), folder.canonicalize().unwrap());
        }
        remove_dangling(pods.path());
        assert!(short.exists());
        fs::remove_dir_all(&pod).unwrap();
        remove_dangling(pods.path());
        assert!(short.symlink_metadata().is_err());
    }
}
