//! Ports of the range for translated sources that programs of the node used before anything watched them.
//!
//! The hooks on `bind` mark a port when a program takes it. What was bound before they were there is read once, from /proc.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use proxy_common::{Addr, NodeConfig, SnatPlace};

use super::maps::{Twins, snat_words};
use super::{Result, written};
use crate::family::Twin;

/// What answers in one family: sockets of the other may, too.
const LISTS: [&str; 4] = ["tcp", "tcp6", "udp", "udp6"];

impl<A: Twin> Twins<A> {
    /// Marks the ports of the range that sockets of the caller's network namespace have.
    pub fn note_bound(&self, node: &NodeConfig<A>) -> Result<()> {
        let words = self.snat.whole().map_err(written(A::SNAT))?;
        for list in LISTS {
            let text = match std::fs::read_to_string(Path::new("/proc/thread-self/net").join(list)) {
                // A kernel without the family.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read.map_err(written(A::SNAT))?,
            };
            for port in local_ports(&text) {
                let number = port.wrapping_sub(node.snat_first);
                if number < node.snat_count {
                    let (words_each, bound) = (snat_words::<A>(), std::mem::offset_of!(SnatPlace<A>, bound) / 8);
                    let first = SnatPlace::<A>::index(number.into(), 0) as usize * words_each;
                    let places = words.iter().skip(first).take(<A as Addr>::SNAT_WAYS * words_each);
                    places.skip(bound).step_by(words_each).for_each(|word| word.store(1, Ordering::Relaxed));
                }
            }
        }
        Ok(())
    }
}

/// The local ports in a list of sockets: `  0: 0100007F:C350 00000000:0000 ...` after a line of titles.
fn local_ports(text: &str) -> impl Iterator<Item = u16> {
    text.lines().skip(1).filter_map(|line| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ports_are_read_in_both_families() {
        let text = "  sl  local_address rem_address   st\n   0: 0100007F:C350 00000000:0000 0A\n\
                    \x20  1: 00000000000000000000000001000000:FFFF 00000000000000000000000000000000:0000 0A\n   bad\n";
        assert_eq!(local_ports(text).collect::<Vec<_>>(), [50_000, 65_535]);
        assert_eq!(local_ports("").count(), 0);
    }
}
