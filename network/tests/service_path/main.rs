//! The service path and the pod network on the real kernel, in namespaces of the test's own: a file for each subject. [`world`] is what
//! all of them stand on.
#![expect(unsafe_code, reason = "entering namespaces")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod affinity;
mod agent;
mod balancers;
mod datagrams;
mod dual;
mod family;
mod forged;
mod host_ports;
mod load;
mod masquerade;
mod netns;
mod node_ports;
mod peers;
mod pods;
mod ports;
mod services;
mod shares;
mod upgrade;
mod uplink;
mod world;
