//! The tree keeps its shape: no file imports another in a circle, and none grows beyond what a reader holds.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use structure::{Source, circles, read_crate, read_package};

/// Most lines of a source file.
const MAX_LINES: usize = 600;
/// Most files that lie directly in the crate of the API's rules.
const MAX_FILES_OF_CORE: usize = 14;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the project's folder")
}

/// All source files of the product and of what starts it locally.
fn sources() -> Vec<Source> {
    let root = root();
    let mut sources = Vec::new();
    for folder in ["functions", "infra"] {
        for entry in fs::read_dir(root.join(folder)).expect("a folder") {
            let src = entry.expect("an entry").path().join("src");
            if src.is_dir() {
                sources.extend(read_crate(&src).expect("Rust"));
            }
        }
    }
    sources.extend(read_package(&root.join("trainer/training")).expect("Python"));
    sources
}

#[test]
fn no_file_imports_itself_by_others() {
    let sources = sources();
    assert!(sources.len() > 150, "only {} files", sources.len());
    let circles = circles(&sources);
    let told: Vec<String> = circles.iter().map(|circle| tell(&sources, circle)).collect();
    assert!(told.is_empty(), "files that import one another in a circle:\n{}", told.join("\n"));
}

/// The imports that tie a circle.
fn tell(sources: &[Source], circle: &[&Path]) -> String {
    let short = |path: &Path| path.strip_prefix(root()).unwrap_or(path).display().to_string();
    let tied = sources.iter().filter(|source| circle.contains(&source.path.as_path())).map(|source| {
        let to: Vec<_> =
            source.imports.iter().filter(|to| circle.contains(&to.as_path())).map(|to| short(to)).collect();
        format!("  {} -> {}", short(&source.path), to.join(", "))
    });
    tied.collect::<Vec<_>>().join("\n")
}

#[test]
fn no_file_is_longer_than_a_reader_holds() {
    let long: Vec<_> = sources().into_iter().filter(|source| source.lines > MAX_LINES).collect();
    assert!(long.is_empty(), "over {MAX_LINES} lines: {:?}", long.iter().map(|file| &file.path).collect::<Vec<_>>());
}

#[test]
fn the_rules_of_the_api_lie_in_rooms() {
    let entries = fs::read_dir(root().join("functions/core/src")).expect("the crate");
    let files = entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_file())).count();
    assert!(files <= MAX_FILES_OF_CORE, "{files} files lie directly in functions/core/src");
}

#[test]
fn circles_are_seen_whatever_way_they_are_written() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let src = folder.path().join("src");
    let files = [
        ("lib.rs", "mod a; mod b; mod c; mod d; mod room; mod e; mod f; mod leaf; mod front;"),
        // Through a group, and through a path in an expression.
        ("a.rs", "use crate::{b::{B, leaf}, leaf::Leaf}; pub struct A;"),
        ("b.rs", "pub struct B; fn f() { let _ = super::a::A; }"),
        // Through what a macro is given.
        ("c.rs", "fn f() { println!(\"{}\", crate::d::D); }"),
        ("d.rs", "use super::c::*; pub const D: u8 = 1;"),
        // Between a room and what lies in it.
        ("room/mod.rs", "mod inner; pub const LIMIT: u8 = inner::X;"),
        ("room/inner.rs", "pub const X: u8 = super::LIMIT;"),
        // For tests alone.
        ("e.rs", "pub struct E; #[cfg(test)] mod tests { use crate::f::F; }"),
        ("f.rs", "use crate::e::E; pub struct F;"),
        ("leaf.rs", "pub struct Leaf;"),
        // Passed on, and no more.
        ("front/mod.rs", "mod back; pub use back::Back; pub struct Front;"),
        ("front/back.rs", "use super::Front; pub struct Back(Front);"),
    ];
    for (name, text) in files {
        let path = src.join(name);
        fs::create_dir_all(path.parent().expect("a folder"))?;
        fs::write(path, text)?;
    }
    let sources = read_crate(&src)?;
    let mut found: Vec<Vec<String>> = circles(&sources)
        .into_iter()
        .map(|circle| {
            circle.iter().filter_map(|path| Some(path.strip_prefix(&src).ok()?.display().to_string())).collect()
        })
        .collect();
    found.sort();
    assert_eq!(found, [vec!["a.rs", "b.rs"], vec!["c.rs", "d.rs"], vec!["room/inner.rs", "room/mod.rs"]]);

    let package = folder.path().join("training");
    let files = [
        ("__init__.py", ""),
        ("a.py", "from training import layout, b\n"),
        ("b.py", "def f():\n    from training.room.c import (\n        X,\n        Y,\n    )\n"),
        ("room/__init__.py", ""),
        ("room/c.py", "import training.a\n"),
        ("layout.py", "import json\nfrom training_other import a\n"),
    ];
    for (name, text) in files {
        let path = package.join(name);
        fs::create_dir_all(path.parent().expect("a folder"))?;
        fs::write(path, text)?;
    }
    let sources = read_package(&package)?;
    let found = circles(&sources);
    let names: Vec<_> = found.iter().flatten().filter_map(|path| path.strip_prefix(&package).ok()).collect();
    assert_eq!(names, [Path::new("a.py"), Path::new("b.py"), Path::new("room/c.py")]);
    Ok(())
}
