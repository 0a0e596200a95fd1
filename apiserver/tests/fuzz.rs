//! The fuzz targets without a fuzzer: each replays its corpus, and some thousand mutations of it from a fixed seed.

#[path = "../../fuzz/src/replay.rs"]
mod replay;
#[path = "../../fuzz/src/targets.rs"]
mod targets;

/// What the readers know; random bytes would rarely hit on it.
const WORDS: [&str; 28] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\0",
    "&a ",
    "*a",
    "<<: ",
    "\n- ",
    "\n  ",
    "null",
    "-1",
    "1e99",
    "\\ud800",
    "\"metadata\":{",
    "\"$patch\":\"replace\"",
    "f:",
    "k:{}",
    "in (",
    "!",
    "\u{e9}",
    "[?(@.",
    ")]",
    "..",
    "[*]",
];

macro_rules! replay {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            let shape = replay::Shape { words: &WORDS, block: 1, largest: 4096 };
            replay::run(stringify!($name), shape, targets::$name);
        }
    )*};
}

replay! { json yaml object patch selector path column spdy websocket }
