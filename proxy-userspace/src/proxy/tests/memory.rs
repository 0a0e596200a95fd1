//! What the maps take of the machine's memory.

use std::fs::read_to_string;
use std::os::fd::AsRawFd as _;

use super::*;

/// Bytes of all maps under the pins, as the kernel counts them.
fn bytes(pins: &Pins) -> u64 {
    let size = |layout: &Layout| {
        let map = sys::object_get(&pins.map(layout.map)).unwrap();
        let info = read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    pins.layouts().iter().map(size).sum()
}

#[test]
fn maps_take_64_mib_whatever_families_there_are() {
    for families in [Families::V4, Families::V6, Families::Both] {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("bpf");
        object::prepare_root(&root).unwrap();
        let pins = Pins::new(&root).of(families);
        let taken = object::load(&pins).map(|_| bytes(&pins));
        object::remove_root(&root).unwrap();
        let taken = taken.unwrap_or_else(|error| panic!("{error:?}"));
        println!("{families:?}: {:.1} MiB", taken as f64 / f64::from(1 << 20));
        assert!(taken <= 64 << 20, "{families:?}: {taken} bytes");
    }
}
