//! What a path may name below an object.

/// A part of an object, or something done to it: what a path may name below an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Approval,
    Attach,
    Binding,
    EphemeralContainers,
    Eviction,
    Exec,
    Finalize,
    Log,
    PortForward,
    Proxy,
    Resize,
    Scale,
    Status,
    Token,
}

impl Part {
    const ALL: [Part; 14] = [
        Part::Approval,
        Part::Attach,
        Part::Binding,
        Part::EphemeralContainers,
        Part::Eviction,
        Part::Exec,
        Part::Finalize,
        Part::Log,
        Part::PortForward,
        Part::Proxy,
        Part::Resize,
        Part::Scale,
        Part::Status,
        Part::Token,
    ];

    /// As paths and rules name it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Approval => "approval",
            Part::Attach => "attach",
            Part::Binding => "binding",
            Part::EphemeralContainers => "ephemeralcontainers",
            Part::Eviction => "eviction",
            Part::Exec => "exec",
            Part::Finalize => "finalize",
            Part::Log => "log",
            Part::PortForward => "portforward",
            Part::Proxy => "proxy",
            Part::Resize => "resize",
            Part::Scale => "scale",
            Part::Status => "status",
            Part::Token => "token",
        }
    }

    pub fn parse(name: &str) -> Option<Part> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}
