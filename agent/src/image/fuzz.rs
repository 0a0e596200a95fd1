//! Layers as nobody would write them: the fuzz target's corpus, and mutations of it.

#[path = "../../../fuzz/src/layer.rs"]
mod layer;
#[path = "../../../fuzz/src/replay.rs"]
mod replay;

const WORDS: [&str; 16] = [
    ".wh.",
    ".wh..wh..opq\0",
    "../",
    "/",
    "\0",
    "0",
    "1",
    "2",
    "3",
    "5",
    "6",
    "S",
    "L",
    "x",
    "SCHILY.xattr.trusted.",
    "777777777777",
];

#[test]
fn layers() {
    // In memory: a disk would take nearly all of the time.
    let disk = crate::disk::TestDisk::new("size=4m");
    let shape = replay::Shape { words: &WORDS, block: 512, largest: 16 << 10 };
    replay::run("layer", shape, |bytes| layer::layer(disk.path(), bytes));
}
