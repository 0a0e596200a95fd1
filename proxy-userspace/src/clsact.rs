//! Packet programs where the kernel has no tcx (CONFIG_NET_XGRESS): filters of a device's `clsact`.
//!
//! They stand before those of others. A filter belongs to its device and goes with it; no process holds it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::object::Side;

/// By it our filters are told from others' of the same priority.
const HANDLE: TcHandle = TcHandle { major: 0x616d, minor: 0x7069 };
const PRIORITY: u32 = 1;
const EVERY_PROTOCOL: u16 = libc::ETH_P_ALL as u16;

/// Attaches a program to a device; one of ours that is there gives way, without a gap.
///
/// # Errors
/// `ENODEV` where there is no such device, `EINVAL` where its first filter is of another kind, `EOPNOTSUPP` or `ENOENT` where the
/// kernel has no `clsact` or no BPF filters.
pub fn put(device: u32, side: Side, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut discipline = discipline(device)?;
    discipline.attributes.push(TcAttribute::Kind("clsact".into()));
    match change(RouteNetlinkMessage::NewQueueDiscipline(discipline), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let options = vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
        TcOption::Bpf(TcFilterBpfOption::ProgName(name.into())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ];
    let mut filter = filter(device, side)?;
    filter.attributes.push(TcAttribute::Options(options));
    change(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE)
}

/// Takes our filter away, and with the last filter of all the discipline. What is not there is no error.
///
/// # Errors
/// `EPERM`, or what the kernel says of a device that it does not let go of.
pub fn remove(device: u32, side: Side) -> io::Result<()> {
    let is_gone = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL));
    let gone = |result: io::Result<()>| result.or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) });
    gone(change(RouteNetlinkMessage::DelTrafficFilter(filter(device, side)?), 0))?;
    if has_filters(device, Side::Ingress)? || has_filters(device, Side::Egress)? {
        return Ok(());
    }
    gone(change(RouteNetlinkMessage::DelQueueDiscipline(discipline(device)?), 0))
}

fn message(device: u32) -> io::Result<TcMessage> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(device).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    Ok(message)
}

fn discipline(device: u32) -> io::Result<TcMessage> {
    /// The only number that it may have.
    const NUMBER: TcHandle = TcHandle { major: 0xffff, minor: 0 };
    let mut message = message(device)?;
    (message.header.handle, message.header.parent) = (NUMBER, TcHandle::CLSACT);
    Ok(message)
}

fn parent(side: Side) -> TcHandle {
    let minor = match side {
        Side::Ingress => TcHandle::MIN_INGRESS,
        Side::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle { minor, ..TcHandle::CLSACT }
}

fn filter(device: u32, side: Side) -> io::Result<TcMessage> {
    let mut message = message(device)?;
    (message.header.handle, message.header.parent) = (HANDLE, parent(side));
    message.header.info = PRIORITY << 16 | u32::from(EVERY_PROTOCOL.to_be());
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
    Ok(message)
}

fn has_filters(device: u32, side: Side) -> io::Result<bool> {
    let mut message = message(device)?;
    message.header.parent = parent(side);
    let mut found = false;
    ask(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP, |_| found = true)?;
    Ok(found)
}

fn change(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    ask(message, NLM_F_ACK | flags, |_| {})
}

/// Sends a request and reads its answer to the end, in the network namespace of the calling thread.
fn ask(message: RouteNetlinkMessage, flags: u16, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            // Messages begin at multiples of four bytes.
            rest = rest.get((message.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::InnerMessage(inner) => each(inner),
                _ => {}
            }
        }
    }
}
