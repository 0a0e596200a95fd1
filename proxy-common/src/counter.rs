//! What the programs count: translations, and every packet or call they turn away, by reason.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// An index into the per-CPU counters.
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// In index order, under the names that metrics use.
            pub const NAMES: &[&str] = &[$($name),*];
        }
    };
}

counters! {
    /// A connect or sendto was sent to an endpoint.
    SocketTranslated = "socket_translated",
    /// A connect or sendto was refused: the service has no endpoint.
    SocketRefused = "socket_refused",
    /// A sendto was left to the packet path: the socket's peers are full or ambiguous.
    SocketLeft = "socket_left_to_packets",
    /// A bind to a NodePort or into the range for translated sources was refused.
    BindRefused = "bind_refused",
    /// A flow to a service began on the packet path.
    ServiceFlow = "service_flow",
    /// A flow out of the cluster got the node's address.
    MasqueradedFlow = "masqueraded_flow",
    /// A packet was answered with a TCP reset.
    Reset = "answered_reset",
    /// A packet was answered with ICMP unreachable.
    Unreachable = "answered_unreachable",
    /// Neither: it could not or must not be answered.
    Unanswerable = "drop_unanswerable",
    /// The policy is Local and the endpoints are elsewhere.
    DropPolicy = "drop_policy",
    /// The service is for certain sources only, and the client is none of them.
    DropSourceRange = "drop_source_range",
    /// A pod sent with an address that is not its own, or nobody knows whose; or an outsider sent with one of this node's.
    DropSpoofed = "drop_spoofed",
    /// A client outside addressed a ClusterIP.
    DropClusterIpOutside = "drop_cluster_ip_from_outside",
    /// No free port was found for a translated source.
    DropSnatExhausted = "drop_snat_exhausted",
    /// A pod has as many flows as one may have.
    DropFlowShare = "drop_flow_share",
    /// A packet came while its flow was still on its way from an earlier version's maps.
    DropCarried = "drop_while_carried",
    /// A later fragment came without its first.
    DropFragment = "drop_fragment",
    /// The packet could not be changed.
    DropMangle = "drop_mangle",
    /// The confirmed flow table is full.
    FlowsFull = "flow_table_full",
    /// An ICMP error was translated back.
    IcmpTranslated = "icmp_error_translated",
}

impl Counter {
    pub const COUNT: usize = Self::NAMES.len();
}
