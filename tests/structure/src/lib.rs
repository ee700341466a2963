//! Which file of the tree imports which, so that a test can refuse circles.
//!
//! ```text
//! .rs ─> syn ─────> paths ─┐
//!                          ├─> files that they name ─> graph ─> circles
//! .py ─> import lines ─────┘
//! ```
//! A [`Source`] is a file with the files that it imports from.
//!
//! A file imports nothing by declaring a module or by passing on what is in it (`pub use`). Code for tests alone is passed
//! over, and so are imports from one crate to another: cargo refuses circles of those.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use petgraph::{algo::tarjan_scc, graphmap::DiGraphMap};
use proc_macro2::{TokenStream, TokenTree};
use regex::Regex;
use syn::{
    Attribute, Item, ItemMod, ItemUse, Macro, UseTree, Visibility,
    visit::{self, Visit},
};
use walkdir::WalkDir;

/// A source file and the files that it imports from.
#[derive(Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Number of its lines.
    pub lines: usize,
    /// Whether it is code for tests alone.
    pub is_test: bool,
    /// The files of its crate or package that it imports from.
    pub imports: BTreeSet<PathBuf>,
}

/// Read all Rust files below a crate's `src`.
///
/// # Errors
/// A file cannot be read, or is not Rust.
pub fn read_crate(src: &Path) -> io::Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut tests = BTreeSet::new();
    for path in files(src, "rs")? {
        let text = fs::read_to_string(&path)?;
        let file = syn::parse_file(&text)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display())))?;
        let mut paths = Paths::of(src, &path);
        paths.visit_file(&file);
        tests.append(&mut paths.tests);
        paths.imports.remove(&path);
        sources.push(Source { lines: text.lines().count(), is_test: false, imports: paths.imports, path });
    }
    for source in &mut sources {
        source.is_test =
            tests.iter().any(|test| source.path == *test || source.path.starts_with(test.with_extension("")));
    }
    for source in &mut sources {
        source.imports.retain(|import| !tests.contains(import));
    }
    Ok(sources)
}

/// Read all Python files below a package, whose name is that of its folder.
///
/// # Errors
/// A file cannot be read.
pub fn read_package(package: &Path) -> io::Result<Vec<Source>> {
    let name = package.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // `from a.b import c, d`, also over several lines, and `import a.b`; at any depth, because heavy ones stand in functions.
    let statement = Regex::new(&format!(
        r"(?m)^\s*(?:from\s+({name}(?:\.[\w.]+)?)\s+import\s+(\([^)]*\)|[^\n#]*)|import\s+({name}\.[\w.]+))"
    ))
    .map_err(io::Error::other)?;
    let mut sources = Vec::new();
    for path in files(package, "py")? {
        let text = fs::read_to_string(&path)?;
        let mut imports = BTreeSet::new();
        for found in statement.captures_iter(&text) {
            let module = found.get(1).or_else(|| found.get(3)).map_or("", |module| module.as_str());
            let module: Vec<&str> = module.split('.').skip(1).collect();
            let items = found.get(2).map_or("", |items| items.as_str());
            let items = items.trim_matches(['(', ')']).split(',').filter_map(|item| item.split_whitespace().next());
            let named = items.map(|item| [module.as_slice(), &[item]].concat()).collect::<Vec<_>>();
            // A name is a module of the package, or stands in the module.
            let found: Vec<_> = named.iter().filter_map(|parts| python_file(package, parts)).collect();
            if found.len() < named.len() || named.is_empty() {
                imports.extend(python_file(package, &module));
            }
            imports.extend(found);
        }
        imports.remove(&path);
        sources.push(Source { lines: text.lines().count(), is_test: false, imports, path });
    }
    Ok(sources)
}

/// The circles among files: each a set of files that import one another, directly or by others.
#[must_use]
pub fn circles(sources: &[Source]) -> Vec<Vec<&Path>> {
    let edges = sources
        .iter()
        .filter(|source| !source.is_test)
        .flat_map(|source| source.imports.iter().map(move |import| (source.path.as_path(), import.as_path())));
    let graph = DiGraphMap::<&Path, ()>::from_edges(edges);
    let mut circles: Vec<_> = tarjan_scc(&graph).into_iter().filter(|files| files.len() > 1).collect();
    for circle in &mut circles {
        circle.sort_unstable();
    }
    circles
}

fn files(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in WalkDir::new(folder).sort_by_file_name() {
        let path = entry.map_err(io::Error::other)?.into_path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    Ok(files)
}

fn python_file(package: &Path, parts: &[&str]) -> Option<PathBuf> {
    let place = package.join(parts.iter().collect::<PathBuf>());
    [place.with_extension("py"), place.join("__init__.py")].into_iter().find(|path| path.is_file())
}

/// The paths of one file, resolved to files.
struct Paths {
    /// Folder of the crate's root module.
    root: PathBuf,
    /// Folder in which the file's own modules lie, and names of these.
    folder: PathBuf,
    children: BTreeSet<String>,
    /// How many inline modules are open.
    depth: usize,
    imports: BTreeSet<PathBuf>,
    /// Files of modules that are compiled for tests alone.
    tests: BTreeSet<PathBuf>,
}

// === impl Paths ===

impl Paths {
    fn of(src: &Path, file: &Path) -> Self {
        let parent = file.parent().unwrap_or(src);
        // A program beside the library has a folder of its own.
        let root = parent.ancestors().take_while(|folder| folder.starts_with(src)).find(|folder| is_root(folder));
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_folder = matches!(stem, "mod" | "lib" | "main");
        let folder = if is_folder { parent.to_owned() } else { parent.join(stem) };
        Self {
            root: root.unwrap_or(src).to_owned(),
            folder,
            children: BTreeSet::new(),
            depth: 0,
            imports: BTreeSet::new(),
            tests: BTreeSet::new(),
        }
    }

    /// A path as it is written, without the item's own name being known: the file of its longest part that is a module.
    fn resolve(&mut self, segments: &[String]) {
        let Some((first, rest)) = segments.split_first() else { return };
        let (mut folder, rest) = match first.as_str() {
            "crate" => (self.root.clone(), rest),
            "self" => (self.folder.clone(), rest),
            // Within an inline module, `super` is the file itself.
            "super" if self.depth > 0 => return,
            "super" => {
                let above = rest.iter().take_while(|segment| *segment == "super").count();
                let folder = self.folder.ancestors().nth(above + 1).unwrap_or(&self.root);
                (folder.to_owned(), rest.get(above..).unwrap_or_default())
            }
            name if self.children.contains(name) => (self.folder.clone(), segments),
            _ => return,
        };
        let mut found = module_of(&folder);
        for segment in rest {
            let Some(file) = module(&folder, segment) else { break };
            folder = folder.join(segment);
            found = Some(file);
        }
        self.imports.extend(found);
    }

    fn resolve_tree(&mut self, tree: &UseTree, mut before: Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.resolve_tree(&path.tree, before);
            }
            UseTree::Name(name) => {
                before.push(name.ident.to_string());
                self.resolve(&before);
            }
            UseTree::Rename(name) => {
                before.push(name.ident.to_string());
                self.resolve(&before);
            }
            UseTree::Glob(_) => self.resolve(&before),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.resolve_tree(tree, before.clone())),
        }
    }

    /// The paths in what a macro is given.
    fn resolve_tokens(&mut self, tokens: TokenStream) {
        let mut segments: Vec<String> = Vec::new();
        for token in tokens {
            match token {
                TokenTree::Ident(name) if segments.last().is_some_and(|last| last == "::") => {
                    segments.pop();
                    segments.push(name.to_string());
                }
                TokenTree::Ident(name) => {
                    self.resolve(&segments);
                    segments = vec![name.to_string()];
                }
                TokenTree::Punct(colon) if colon.as_char() == ':' && !segments.is_empty() => {
                    if segments.last().is_none_or(|last| last != "::") {
                        segments.push("::".to_owned());
                    }
                }
                TokenTree::Group(group) => {
                    self.resolve(&std::mem::take(&mut segments));
                    self.resolve_tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => self.resolve(&std::mem::take(&mut segments)),
            }
        }
        self.resolve(&segments);
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_file(&mut self, file: &'ast syn::File) {
        for item in &file.items {
            if let Item::Mod(module @ ItemMod { content: None, .. }) = item {
                self.children.insert(module.ident.to_string());
            }
        }
        visit::visit_file(self, file);
    }

    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !attributes.iter().any(is_for_tests) {
            visit::visit_item(self, item);
        } else if let Item::Mod(module @ ItemMod { content: None, .. }) = item {
            self.tests.extend(self::module(&self.folder, &module.ident.to_string()));
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.depth += 1;
        visit::visit_item_mod(self, module);
        self.depth -= 1;
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let first = match &item.tree {
            UseTree::Path(path) => path.ident.to_string(),
            UseTree::Name(_) | UseTree::Rename(_) | UseTree::Glob(_) | UseTree::Group(_) => String::new(),
        };
        if matches!(item.vis, Visibility::Public(_)) && self.children.contains(&first) {
            return;
        }
        self.resolve_tree(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.resolve(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast Macro) {
        self.resolve_tokens(called.tokens.clone());
        visit::visit_macro(self, called);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !function.attrs.iter().any(is_for_tests) {
            visit::visit_impl_item_fn(self, function);
        }
    }
}

/// `#[cfg(test)]`, also among other conditions that all have to hold.
fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && {
        let condition = attribute.meta.require_list().map(|list| list.tokens.to_string()).unwrap_or_default();
        condition == "test" || condition.starts_with("all (test") || condition.starts_with("any (test")
    }
}

fn is_root(folder: &Path) -> bool {
    ["lib.rs", "main.rs"].iter().any(|name| folder.join(name).is_file())
}

/// The file of a module below a folder.
fn module(folder: &Path, name: &str) -> Option<PathBuf> {
    [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")].into_iter().find(|path| path.is_file())
}

/// The file whose modules lie in a folder.
fn module_of(folder: &Path) -> Option<PathBuf> {
    ["mod.rs", "lib.rs", "main.rs"]
        .map(|name| folder.join(name))
        .into_iter()
        .chain([folder.with_extension("rs")])
        .find(|path| path.is_file())
}
