//! Capability sets of a container's configuration, as the kernel takes them.

use oci_spec::runtime::Capabilities;

use crate::capability::NAMES;

/// A capability set as the kernel's bits: oci-spec lists them in the kernel's order only by luck, so by name.
pub fn bits(set: Option<&Capabilities>) -> u64 {
    let bit = |name: String| {
        let name = name.trim_start_matches("CAP_").to_owned();
        NAMES.iter().position(|known| *known == name).map_or(0, |position| 1_u64 << position)
    };
    set.into_iter().flatten().fold(0, |bits, capability| bits | bit(capability.to_string()))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Capability;

    use super::*;

    #[test]
    fn capability_bits_are_the_kernels() {
        let set: Capabilities = [Capability::Chown, Capability::SysAdmin, Capability::CheckpointRestore].into();
        assert_eq!(bits(Some(&set)), 1 | 1 << 21 | 1 << 40);
        assert_eq!(bits(None), 0);
    }
}
