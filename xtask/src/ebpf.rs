//! Builds the BPF programs and keeps the committed object honest.
//!
//! The object is committed so that `cargo build` needs neither a nightly compiler nor bpf-linker. `check_ebpf` builds afresh and
//! compares what the kernel would be given: instructions, relocations, map definitions, types. Debug information and BTF line
//! texts are left out, for they change with comments.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind};

use crate::setup::{EbpfToolchain, bpf_linker, run, workspace_root};

mod btf;

const TARGET: &str = "bpfel-unknown-none";

/// Builds `proxy-ebpf/` and puts the object where `proxy-userspace` embeds it.
pub fn build_ebpf() -> Result<()> {
    let fresh = compile()?;
    let committed = committed_object();
    let bytes = without_debug_information(&fs::read(&fresh).with_context(|| format!("reading {}", fresh.display()))?)?;
    if fs::read(&committed).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::create_dir_all(committed.parent().context("the object has a folder")?)?;
    fs::write(&committed, bytes).with_context(|| format!("writing {}", committed.display()))
}

/// Fails when the committed object's programs differ from what the sources give.
pub fn check_ebpf() -> Result<()> {
    let fresh = digest(&compile()?)?;
    let committed = digest(&committed_object())?;
    let differing: BTreeSet<&str> = fresh
        .keys()
        .chain(committed.keys())
        .filter(|name| fresh.get(*name) != committed.get(*name))
        .map(String::as_str)
        .collect();
    if !differing.is_empty() {
        bail!(
            "the committed BPF object is not what proxy-ebpf/ builds (run `cargo xtask build-ebpf`): {}",
            differing.into_iter().collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}

fn committed_object() -> PathBuf {
    workspace_root().join("proxy-userspace/bpf/amphipod.bpf.o")
}

fn compile() -> Result<PathBuf> {
    let toolchain = EbpfToolchain::choose();
    let linker = bpf_linker().context("bpf-linker is missing: run `cargo xtask setup`")?;
    let folder = workspace_root().join("proxy-ebpf");
    let target = workspace_root().join("target/ebpf");
    let mut cargo = Command::new(toolchain.program("cargo"));
    cargo.args(["build", "--release", "--quiet", "--locked", "--target", TARGET]).current_dir(&folder);
    // A cargo started by rustup passes its own choice of compiler down; the programs have theirs.
    for inherited in
        ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_ENCODED_RUSTFLAGS"]
    {
        cargo.env_remove(inherited);
    }
    cargo.env("RUSTC", toolchain.program("rustc")).env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_UNSTABLE_BUILD_STD", "core").env("CARGO_TARGET_DIR", &target);
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker).env("RUSTFLAGS", flags(&folder).join(" "));
    run(&mut cargo).context("building the BPF programs")?;
    Ok(target.join(TARGET).join("release/amphipod-bpf"))
}

/// BTF goes in (the kernel needs it for the maps), and no path of the building machine does. Of the instruction set, the version that
/// has compare-and-swap, which every kernel that can be used has.
fn flags(folder: &Path) -> Vec<String> {
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")));
    let mut flags = vec!["-Cdebuginfo=2".into(), "-Clink-arg=--btf".into(), "-Ctarget-cpu=v3".into()];
    flags.push(format!("--remap-path-prefix={}=proxy-ebpf", folder.display()));
    flags.push(format!("--remap-path-prefix={}=.", workspace_root().display()));
    flags.extend(home.map(|home| format!("--remap-path-prefix={home}=cargo")));
    flags
}

/// DWARF is nine tenths of the object and nothing that the kernel reads; BTF stays.
fn without_debug_information(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut builder = object::build::elf::Builder::read(bytes)?;
    for section in builder.sections.iter_mut() {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug") || name.starts_with(b".rel.debug");
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and symbols in one table; the writer wants one for sections.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// Section name → everything in it that reaches the kernel as program or map.
fn digest(path: &Path) -> Result<BTreeMap<String, String>> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{} is no object file", path.display()))?;
    let mut digest = BTreeMap::new();
    for section in file.sections().filter(is_loaded) {
        let name = section.name()?.to_owned();
        let mut text = format!("{:?}", section.data()?);
        for (offset, relocation) in section.relocations() {
            text.push_str(&format!("\n{offset} {:?} {}", relocation.kind(), target_name(&file, relocation.target())?));
        }
        digest.insert(name, text);
    }
    if let Some(section) = file.section_by_name(".BTF") {
        digest.insert("types".into(), btf::types(section.data()?)?);
    }
    for symbol in file.symbols().filter(|symbol| symbol.is_global() && symbol.is_definition()) {
        digest.insert(format!("symbol {}", symbol.name()?), format!("{} {}", symbol.address(), symbol.size()));
    }
    Ok(digest)
}

fn is_loaded(section: &object::Section<'_, '_>) -> bool {
    matches!(
        section.kind(),
        SectionKind::Text | SectionKind::Data | SectionKind::ReadOnlyData | SectionKind::UninitializedData
    )
}

fn target_name(file: &object::File<'_>, target: RelocationTarget) -> Result<String> {
    Ok(match target {
        RelocationTarget::Symbol(index) => file.symbol_by_index(index)?.name()?.to_owned(),
        RelocationTarget::Section(index) => file.section_by_index(index)?.name()?.to_owned(),
        other => format!("{other:?}"),
    })
}
