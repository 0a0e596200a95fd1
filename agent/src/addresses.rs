//! The pods' addresses on this node.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// The node's pod addresses. The least recently used comes first, so that a released one rests.
#[derive(Debug)]
pub struct Addresses {
    free: Mutex<VecDeque<IpAddr>>,
}

impl Addresses {
    pub fn new(cidr: crate::config::PodCidr, taken: &BTreeSet<IpAddr>) -> Addresses {
        let free = cidr.addresses().map(IpAddr::from).filter(|ip| !taken.contains(ip)).collect();
        Addresses { free: Mutex::new(free) }
    }

    pub fn take(&self) -> Option<IpAddr> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub fn release(&self, ip: IpAddr) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push_back(ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_rest_after_use() {
        let taken = ["10.0.0.2".parse().unwrap()].into();
        let addresses = Addresses::new("10.0.0.0/29".parse().unwrap(), &taken);
        let first = addresses.take().unwrap();
        assert_eq!(first.to_string(), "10.0.0.3");
        addresses.release(first);
        assert_eq!(addresses.take().unwrap().to_string(), "10.0.0.4");
    }
}
