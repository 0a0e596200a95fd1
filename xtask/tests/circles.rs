//! No circle of imports between the files of a crate: whoever reads a file finds below it what it stands on, and nothing that
//! stands on it.
//!
//! What counts. A file uses another when it names an item of it: in a `use`, or by a path that begins with `crate`, `super`,
//! `self`, a module it declares or one that it imported. A name that a module only passes on (`pub use`) counts as the file
//! that has it, so a facade stands on nothing by re-exporting. Modules of tests do not count.
//!
//! Between a file and the files of its own folder (`engine.rs` and `engine/*.rs`) one direction is the language's own: parts
//! add to the types of the whole and hold to its constants. So that a part names a *type or constant* of a module above it
//! does not count; that it calls a *function* there does, and so does everything between files that are not above each other.
//! What the whole and its parts both call is therefore in a file of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// Every crate, by the file it begins with.
const ROOTS: [&str; 19] = [
    "agent/src/lib.rs",
    "api/src/lib.rs",
    "apiserver/src/lib.rs",
    "bench/src/main.rs",
    "causes/src/lib.rs",
    "client/src/lib.rs",
    "dns/src/lib.rs",
    "fuzz/src/lib.rs",
    "network/src/lib.rs",
    "node/src/lib.rs",
    "orchestrator/src/main.rs",
    "pod/src/lib.rs",
    "proxy-common/src/lib.rs",
    "proxy-ebpf/src/main.rs",
    "proxy-userspace/src/lib.rs",
    "tests/nodes/main.rs",
    "tests/src/lib.rs",
    "tests/suite/main.rs",
    "xtask/src/main.rs",
];

#[test]
fn no_files_import_each_other() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for root in ROOTS {
        for circle in Crate::read(&workspace.join(root)).circles() {
            let edges: Vec<&str> = circle.iter().flat_map(|(_, edges)| edges.lines()).collect();
            found.push(format!("{root}:\n  {}", edges.join("\n  ")));
        }
    }
    assert!(found.is_empty(), "files that import each other:\n{}", found.join("\n"));
}

#[test]
fn every_crate_is_looked_at() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for entry in fs::read_dir(workspace).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_crate = ["lib.rs", "main.rs"].iter().any(|root| workspace.join(&name).join("src").join(root).exists());
        assert!(
            !is_crate || ROOTS.iter().any(|root| root.starts_with(&format!("{name}/"))),
            "{name} is not in the list"
        );
    }
}

/// A circle is found, whichever way its files name each other; what does not count is not.
#[test]
fn circles_are_found() {
    let circles = |files: &[(&str, &str)]| -> Vec<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = Crate::read(&folder.path().join("lib.rs")).circles();
        found.into_iter().map(|circle| circle.into_iter().map(|(module, _)| module).collect()).collect()
    };
    let lib = ("lib.rs", "mod a; mod b;");
    let both = [vec!["a".to_owned(), "b".to_owned()]];
    assert_eq!(
        circles(&[lib, ("a.rs", "use crate::b::B; pub struct A;"), ("b.rs", "pub struct B(super::a::A);")]),
        both
    );
    let by_module = ("a.rs", "use crate::b; pub fn a() { b::f() }");
    assert_eq!(circles(&[lib, by_module, ("b.rs", "pub fn f() { debug!(crate::a::a()) }")]), both, "in a macro");
    let nested = ("a.rs", "pub(crate) struct A; mod inner { use super::super::b::B; }");
    assert_eq!(circles(&[lib, nested, ("b.rs", "use {crate::{a::{A as X}}}; pub struct B;")]), both, "in nested trees");
    let tests = ("b.rs", "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }");
    assert!(circles(&[lib, ("a.rs", "use crate::b::B; pub struct A;"), tests]).is_empty(), "tests do not count");
    let facade = ("a.rs", "mod part; pub use part::P; pub fn f() -> P { P }");
    let part = |text| ("a/part.rs", text);
    let one = ("lib.rs", "mod a;");
    assert!(
        circles(&[one, facade, part("pub struct P; impl P { pub const X: u8 = super::Y; }")]).is_empty(),
        "constants"
    );
    let whole = [vec!["a".to_owned(), "a::part".to_owned()]];
    assert_eq!(circles(&[one, facade, part("pub struct P; fn g() -> P { super::f() }")]), whole, "functions above");
    let passed_on = ("b.rs", "pub use crate::a::A;");
    assert!(circles(&[lib, ("a.rs", "use crate::b::A as Own; pub struct A;"), passed_on]).is_empty(), "re-exports");
}

/// A module by its path from the crate's root.
type Module = Vec<String>;

struct File {
    /// Modules with files of their own.
    children: BTreeSet<String>,
    items: HashMap<String, Sort>,
    /// What `use` brings in, by its name here.
    imports: Vec<Import>,
    /// Paths elsewhere, by their segments.
    paths: BTreeSet<Vec<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Function,
    Other,
}

struct Import {
    /// `None` for everything.
    name: Option<String>,
    path: Vec<String>,
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Use,
    /// `pub use`: the name is for others.
    PassOn,
}

struct Crate {
    files: BTreeMap<Module, File>,
}

impl Crate {
    fn read(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        read(root, root.parent().expect("src/ is in a crate").to_owned(), Vec::new(), &mut files);
        Self { files }
    }

    /// Each circle as its modules, with the edges that leave them for others of it.
    fn circles(&self) -> Vec<Vec<(String, String)>> {
        let edges: BTreeMap<&Module, BTreeMap<Module, BTreeSet<String>>> =
            self.files.keys().map(|module| (module, self.uses(module))).collect();
        let reach: BTreeMap<&Module, BTreeSet<Module>> =
            edges.keys().map(|from| (*from, reachable(from, &edges))).collect();
        let mut seen = BTreeSet::new();
        let mut circles = Vec::new();
        for module in self.files.keys().filter(|module| reach[*module].contains(*module)) {
            if !seen.contains(module) {
                let circle: Vec<&Module> =
                    reach[module].iter().filter(|other| reach[*other].contains(module)).collect();
                seen.extend(circle.iter().copied().cloned());
                let told = |from: &Module| {
                    let inside = edges[from].iter().filter(|(to, _)| circle.contains(to));
                    let tell = |(to, names): (&Module, &BTreeSet<String>)| {
                        let names: Vec<&str> = names.iter().map(String::as_str).collect();
                        format!("{} -> {}: {}", shown(from), shown(to), names.join(", "))
                    };
                    (shown(from), inside.map(tell).collect::<Vec<_>>().join("\n"))
                };
                circles.push(circle.iter().map(|module| told(module)).collect());
            }
        }
        circles
    }

    /// The files that one uses, each with the names of it.
    fn uses(&self, module: &Module) -> BTreeMap<Module, BTreeSet<String>> {
        let file = &self.files[module];
        let mut out: BTreeMap<Module, BTreeSet<String>> = BTreeMap::new();
        let mut add = |found: Option<(Module, String, Sort)>| {
            let Some((to, name, sort)) = found.filter(|(to, ..)| to != module) else { return };
            if sort == Sort::Function || !module.starts_with(&to) {
                out.entry(to).or_default().insert(name);
            }
        };
        for import in file.imports.iter().filter(|import| import.purpose == Purpose::Use && import.name.is_some()) {
            add(self.item(module, &import.path));
        }
        for path in &file.paths {
            add(self.item(module, path));
        }
        out
    }

    /// The file that has the item that a path names from here, followed through what modules pass on.
    fn item(&self, from: &Module, path: &[String]) -> Option<(Module, String, Sort)> {
        self.resolve(from, path, 0)
    }

    fn resolve(&self, from: &Module, path: &[String], depth: usize) -> Option<(Module, String, Sort)> {
        let (first, rest) = path.split_first()?;
        if depth > 16 {
            return None;
        }
        match first.as_str() {
            "crate" => self.resolve_in(Vec::new(), rest, depth),
            "self" => self.resolve_in(from.clone(), rest, depth),
            "super" => self.resolve(&from[..from.len().checked_sub(1)?].to_vec(), &own(rest), depth),
            _ => self.resolve_in(from.clone(), path, depth),
        }
    }

    fn resolve_in(&self, mut module: Module, path: &[String], depth: usize) -> Option<(Module, String, Sort)> {
        let mut path = path;
        loop {
            let file = self.files.get(&module)?;
            let (first, rest) = path.split_first()?;
            if file.children.contains(first) && !rest.is_empty() {
                module.push(first.clone());
                path = rest;
                continue;
            }
            if let Some(sort) = file.items.get(first) {
                return Some((module, first.clone(), *sort));
            }
            let named = file.imports.iter().find(|import| import.name.as_ref() == Some(first));
            if let Some(import) = named {
                let further: Vec<String> = import.path.iter().chain(rest).cloned().collect();
                return self.resolve(&module, &further, depth + 1);
            }
            let globs = file.imports.iter().filter(|import| import.name.is_none());
            return globs.into_iter().find_map(|glob| {
                let further: Vec<String> = glob.path.iter().chain(path).cloned().collect();
                self.resolve(&module, &further, depth + 1)
            });
        }
    }
}

/// A path that goes on in the module above.
fn own(rest: &[String]) -> Vec<String> {
    match rest.first().map(String::as_str) {
        Some("super") => rest.to_vec(),
        _ => [String::from("self")].into_iter().chain(rest.iter().cloned()).collect(),
    }
}

fn shown(module: &Module) -> String {
    if module.is_empty() { "the root".to_owned() } else { module.join("::") }
}

fn reachable(from: &Module, edges: &BTreeMap<&Module, BTreeMap<Module, BTreeSet<String>>>) -> BTreeSet<Module> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
    while let Some(module) = next.pop() {
        for to in edges[&module].keys() {
            if seen.insert(to.clone()) {
                next.push(to.clone());
            }
        }
    }
    seen
}

/// Reads a module's file and those of the modules that it declares; `folder` is where these are.
fn read(path: &Path, folder: PathBuf, module: Module, files: &mut BTreeMap<Module, File>) {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = Reader { inner: 0, file: File::empty(), modules: HashSet::new() };
    parsed.items.iter().for_each(|item| reader.visit_item(item));
    for name in &reader.modules {
        let (plain, nested) = (folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs"));
        if let Some(path) = [plain, nested].into_iter().find(|path| path.exists()) {
            reader.file.children.insert(name.clone());
            let below = module.iter().cloned().chain([name.clone()]).collect();
            read(&path, folder.join(name), below, files);
        }
    }
    files.insert(module, reader.file);
}

impl File {
    fn empty() -> Self {
        Self { children: BTreeSet::new(), items: HashMap::new(), imports: Vec::new(), paths: BTreeSet::new() }
    }
}

struct Reader {
    /// How many modules without files of their own this is in.
    inner: usize,
    file: File,
    modules: HashSet<String>,
}

impl Reader {
    fn declare(&mut self, item: &Item) {
        let (name, sort) = match item {
            Item::Const(item) => (&item.ident, Sort::Other),
            Item::Enum(item) => (&item.ident, Sort::Other),
            Item::Fn(item) => (&item.sig.ident, Sort::Function),
            Item::Static(item) => (&item.ident, Sort::Other),
            Item::Struct(item) => (&item.ident, Sort::Other),
            Item::Trait(item) => (&item.ident, Sort::Other),
            Item::Type(item) => (&item.ident, Sort::Other),
            Item::Union(item) => (&item.ident, Sort::Other),
            Item::Mod(item) if item.content.is_none() => {
                self.modules.insert(item.ident.to_string());
                return;
            }
            _ => return,
        };
        self.file.items.insert(name.to_string(), sort);
    }

    /// Of a path in a module without a file: less what leads up to the file's own.
    fn add(&mut self, path: Vec<String>) {
        self.file.paths.insert(self.outer(path));
    }

    fn outer(&self, path: Vec<String>) -> Vec<String> {
        let ups = path.iter().take_while(|segment| *segment == "super").count().min(self.inner);
        if ups == 0 { path } else { own(&path[ups..]) }
    }

    fn import(&mut self, tree: &UseTree, before: &[String], purpose: Purpose) {
        let with = |segment: String| before.iter().cloned().chain([segment]).collect::<Vec<_>>();
        let (name, path) = match tree {
            UseTree::Path(path) => return self.import(&path.tree, &with(path.ident.to_string()), purpose),
            UseTree::Group(group) => return group.items.iter().for_each(|tree| self.import(tree, before, purpose)),
            UseTree::Name(name) if name.ident == "self" => (before.last().cloned(), before.to_vec()),
            UseTree::Name(name) => (Some(name.ident.to_string()), with(name.ident.to_string())),
            UseTree::Rename(rename) if rename.ident == "self" => (Some(rename.rename.to_string()), before.to_vec()),
            UseTree::Rename(rename) => (Some(rename.rename.to_string()), with(rename.ident.to_string())),
            UseTree::Glob(_) => (None, before.to_vec()),
        };
        let path = self.outer(path);
        self.file.imports.push(Import { name, path, purpose });
    }

    /// Paths in a macro's arguments, which are no syntax of their own.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if path.is_empty() || colons == 2 => path.push(ident.to_string()),
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() && colons < 2 => {
                    colons += 1;
                    continue;
                }
                other => {
                    self.flush(&mut path);
                    match other {
                        TokenTree::Ident(ident) => path.push(ident.to_string()),
                        TokenTree::Group(group) => self.tokens(group.stream()),
                        _ => {}
                    }
                }
            }
            colons = 0;
        }
        self.flush(&mut path);
    }

    fn flush(&mut self, path: &mut Vec<String>) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.add(path);
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg")
                && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test"))
    })
}

fn attributes_of(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_test(attributes_of(item)) {
            return;
        }
        if self.inner == 0 {
            self.declare(item);
        }
        match item {
            Item::Use(item) => {
                let purpose = match item.vis {
                    syn::Visibility::Inherited => Purpose::Use,
                    _ => Purpose::PassOn,
                };
                self.import(&item.tree, &[], purpose);
            }
            Item::Mod(item) if item.content.is_some() => {
                self.inner += 1;
                visit::visit_item_mod(self, item);
                self.inner -= 1;
            }
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            self.add(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }
}
