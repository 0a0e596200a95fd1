//! The life of a connection on the packet path: packets through the loaded programs, and the table read in between. Time is made to
//! pass by dating the table back. Every case is told in IPv4 addresses and runs in both families.

use super::*;
use crate::cost::{addr, frame, tuple_of};

const SECOND: u64 = 1_000_000_000;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const NODE_PORT: u16 = 30_080;
const ENDPOINT: [u8; 4] = [10, 244, 0, 5];

/// A node whose port leads to an endpoint in its own pod.
struct World<A> {
    kernel: Kernel,
    table: std::cell::RefCell<Table>,
    family: std::marker::PhantomData<A>,
}

/// A family with its maps.
trait Tried: Twin {
    fn maps(maps: &Maps) -> &Twins<Self>;
}

impl Tried for Ip4 {
    fn maps(maps: &Maps) -> &Twins<Self> {
        &maps.v4
    }
}

impl Tried for Ip {
    fn maps(maps: &Maps) -> &Twins<Self> {
        &maps.v6
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment<A> {
    tuple: Tuple<A>,
    flags: u8,
}

macro_rules! in_both_families {
    ($($case:ident,)*) => {
        mod v4 {
            $(#[test]
            fn $case() {
                super::$case::<proxy_common::Ip4>();
            })*
        }

        mod v6 {
            $(#[test]
            fn $case() {
                super::$case::<proxy_common::Ip>();
            })*
        }
    };
}

/// The ways in which a connection ends: who sends what.
const ENDS: [&[(Side, u8)]; 4] = [
    &[(Side::Client, RST)],
    &[(Side::Endpoint, RST)],
    &[(Side::Client, FIN | ACK), (Side::Endpoint, FIN | ACK)],
    &[(Side::Endpoint, FIN | ACK), (Side::Client, FIN | ACK)],
];

#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    Endpoint,
}

fn tuple<A: Twin>(protocol: u8, src: ([u8; 4], u16), dst: ([u8; 4], u16)) -> Tuple<A> {
    Tuple { protocol, ..tuple_of(addr(src.0), src.1, addr(dst.0), dst.1) }
}

impl<A: Tried> World<A> {
    fn new() -> Self {
        let kernel = Kernel::new();
        let table = kernel.settle(&Contents::new()).into();
        let world = Self { kernel, table, family: std::marker::PhantomData };
        world.lead_to(&[ENDPOINT]);
        world
    }

    fn maps(&self) -> &Twins<A> {
        A::maps(&self.kernel.maps)
    }

    /// With so many ports behind the node.
    fn with_ports(count: u16) -> Self {
        let world = Self::new();
        let node = NodeConfig { snat_count: count, ..world.maps().node.get(&0).unwrap().unwrap() };
        world.maps().node.put(&0, &node, Put::Any).unwrap();
        world
    }

    /// TCP and UDP of the port lead to these endpoints from now on.
    fn lead_to(&self, endpoints: &[[u8; 4]]) {
        self.lead(endpoints, 0);
    }

    /// The same with flags of the set.
    fn lead(&self, endpoints: &[[u8; 4]], flags: u16) {
        self.serve("default/web", NODE_PORT, endpoints, flags);
    }

    fn serve(&self, service: &str, node_port: u16, endpoints: &[[u8; 4]], flags: u16) {
        let backends = endpoints.iter().map(|ip| Target { ip: addr::<A>(*ip).address(), port: 8080 }).collect();
        let set = EndpointSet { backends, flags, ..Default::default() };
        let entry = |protocol| {
            let addr = match A::FAMILY {
                Family::V4 => IpAddr::from([0; 4]),
                Family::V6 => IpAddr::from([0; 16]),
            };
            let frontends = vec![Frontend { addr, port: node_port, protocol, scope: Scope::External }];
            Entry { port: 80, protocol, frontends, set: set.clone() }
        };
        let change = self.table.borrow_mut().change(service, &[entry(TCP), entry(UDP)]);
        self.kernel.run(&change.ops);
    }

    /// What a program makes of a segment.
    fn pass(&self, hook: PacketHook, Segment { tuple, flags }: Segment<A>) -> Segment<A> {
        let program = self.kernel.programs.get(hook.program()).unwrap();
        let (_, packet, _) = sys::test_run(program.as_fd(), &frame(flags, &tuple), 1).unwrap();
        read(&packet)
    }

    fn client_sends(&self, client: ([u8; 4], u16), flags: u8) -> Segment<A> {
        self.pass(PacketHook::FromUplink, Segment { tuple: tuple(TCP, client, (NODE, NODE_PORT)), flags })
    }

    fn endpoint_sends(&self, shown: &Tuple<A>, flags: u8) -> Segment<A> {
        self.pass(PacketHook::FromPod, Segment { tuple: shown.reversed(), flags })
    }

    /// The three segments that open a connection; what its endpoint sees of it.
    fn open(&self, client: ([u8; 4], u16)) -> Tuple<A> {
        let shown = self.client_sends(client, SYN);
        assert_eq!((shown.tuple.dst, shown.flags), (addr(ENDPOINT), SYN), "{shown:?}");
        let answer = self.endpoint_sends(&shown.tuple, SYN | ACK);
        assert_eq!(answer.tuple, tuple(TCP, (NODE, NODE_PORT), client));
        assert_eq!(self.client_sends(client, ACK).tuple, shown.tuple);
        shown.tuple
    }

    /// A connection that has ended; what its endpoint saw of it.
    fn end(&self, client: ([u8; 4], u16), ends: &[(Side, u8)]) -> Tuple<A> {
        let shown = self.open(client);
        for (side, flags) in ends {
            match side {
                Side::Client => self.client_sends(client, *flags),
                Side::Endpoint => self.endpoint_sends(&shown, *flags),
            };
        }
        assert_eq!(self.flow(client).unwrap().stage(), Stage::Closed, "{ends:?}");
        shown
    }

    /// As many flows as may be new.
    fn newest(&self) -> usize {
        if A::FAMILY == Family::V4 { MAX_NEW_FLOWS } else { MAX_NEW_FLOWS6 }
    }

    fn flows(&self) -> Vec<(Tuple<A>, Flow<A>)> {
        self.maps().flows.entries().unwrap()
    }

    fn flow(&self, client: ([u8; 4], u16)) -> Option<Flow<A>> {
        self.maps().flows.get(&tuple(TCP, client, (NODE, NODE_PORT))).unwrap()
    }

    /// Every flow is as many seconds older, and those past their deadline go.
    fn pass_seconds(&self, seconds: u64) {
        for (key, flow) in self.flows() {
            let seen = flow.seen.saturating_sub(seconds * SECOND);
            self.maps().flows.put(&key, &Flow { seen, tick: 0, ..flow }, Put::Any).unwrap();
        }
        self.kernel.maps.sweep(&mut Suspects::default()).unwrap();
    }

    /// Places among the shared ports that somebody has.
    fn users(&self) -> usize {
        let words = self.maps().snat.whole().unwrap();
        let places = words.chunks_exact(size_of::<SnatPlace<A>>() / 8);
        places.filter(|place| place[0].load(Ordering::Relaxed) != 0).count()
    }
}

/// A packet as it left a program.
fn read<A: Tried>(packet: &[u8]) -> Segment<A> {
    let (addresses, header, protocol) = match A::FAMILY {
        Family::V4 => (14 + 12, 20, packet[23]),
        Family::V6 => (14 + 8, 40, packet[20]),
    };
    let length = size_of::<A>();
    let ip = |at: usize| match <[u8; 4]>::try_from(&packet[at..at + length]) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + length]).unwrap()),
    };
    let transport = &packet[14 + header..];
    let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    let (src, dst) = (A::of(ip(addresses)).unwrap(), A::of(ip(addresses + length)).unwrap());
    let flags = if protocol == TCP { transport[13] } else { 0 };
    Segment { tuple: Tuple { protocol, ..tuple_of(src, port(0), dst, port(2)) }, flags }
}

in_both_families! {
    a_flood_of_openings_leaves_room_for_a_client,
    openings_to_many_endpoints_push_out_the_oldest,
    where_all_flows_are_in_use_what_is_over_gives_way_and_nothing_that_lives,
    a_connection_closed_on_one_side_lives_an_hour,
    an_open_connection_lives_a_day_and_a_reset_one_little_more_than_a_minute,
    a_clients_port_that_comes_round_again_keeps_its_port_behind_the_node,
    what_is_over_or_gave_way_does_not_count_for_its_clients_share,
    an_opening_after_the_end_that_nobody_accepts_lives_no_longer_than_what_it_follows,
    an_opening_after_the_end_follows_no_endpoint_that_its_service_lost,
    an_opening_goes_to_whose_port_it_is_now,
    a_port_that_rests_is_taken_over_when_no_other_is_left_and_the_oldest_first,
    an_opening_that_comes_again_finds_its_answers,
    an_opening_follows_no_endpoint_that_is_gone_and_a_connection_stays,
    datagrams_move_on_with_the_next_when_their_endpoint_goes,
    the_sweep_takes_no_flow_that_was_used_since_it_looked,
    a_flow_that_begins_while_the_sweep_removes_its_forerunner_goes_back,
    a_place_without_a_flow_is_free_again_after_two_sweeps,
    what_ended_is_swept_when_a_process_starts,
    an_element_that_was_recycled_is_no_flow_of_its_reader,
}

fn invented(number: u32) -> ([u8; 4], u16) {
    let [_, a, b, c] = number.to_be_bytes();
    ([198, 18 + a, b, c], 1024)
}

const CLIENT_SIDE: ([u8; 4], u16) = ([203, 0, 113, 5], 40_000);

fn a_flood_of_openings_leaves_room_for_a_client<A: Tried>() {
    let world = World::<A>::new();
    let established = world.open(([203, 0, 113, 9], 40_000));
    for number in 0..45_000 {
        let shown = world.client_sends(invented(number), SYN);
        assert_eq!(shown.tuple.dst, addr(ENDPOINT), "{number}");
        // The endpoint answers them all: nobody there hears it.
        world.endpoint_sends(&shown.tuple, SYN | ACK);
    }
    assert!(world.flows().len() <= 15_001, "as many as one endpoint has ports: {}", world.flows().len());
    world.open(CLIENT_SIDE);
    assert_eq!(world.endpoint_sends(&established, ACK).tuple.dst, addr([203, 0, 113, 9]));
    world.pass_seconds(120);
    assert_eq!((world.flows().len(), world.users()), (2, 2), "what nobody confirmed is gone");
    world.open((CLIENT_SIDE.0, 40_001));
    assert_eq!(world.client_sends(CLIENT_SIDE, ACK).flags, ACK);
}

fn openings_to_many_endpoints_push_out_the_oldest<A: Tried>() {
    let world = World::<A>::new();
    let endpoints: Vec<[u8; 4]> = (0..8).map(|last| [10, 245, 0, last]).collect();
    world.lead_to(&endpoints);
    for number in 0..40_000 {
        world.client_sends(invented(number), SYN);
    }
    assert_eq!(world.flows().len(), world.newest());
    assert_eq!(world.users(), world.newest(), "each port goes with its flow");
}

fn where_all_flows_are_in_use_what_is_over_gives_way_and_nothing_that_lives<A: Tried>() {
    let world = World::<A>::new();
    let endpoints: Vec<[u8; 4]> = (0..8).map(|last| [10, 245, 0, last]).collect();
    world.lead_to(&endpoints);
    for number in 0..world.newest() as u32 {
        let shown = world.client_sends(invented(number), SYN).tuple;
        world.pass(PacketHook::FromUplink, Segment { tuple: shown.reversed(), flags: SYN | ACK });
        world.client_sends(invented(number), ACK);
        world.client_sends(invented(number), RST);
    }
    // Others that live, so many that none is left.
    let living = Flow { replied: 1, assured: 1, seen: sys::monotonic_nanoseconds(), ..Flow::default() };
    let fill = |number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        let key = tuple(TCP, ([100, 64 + a, b, c], 1024), (NODE, NODE_PORT));
        world.maps().flows.put(&key, &living, Put::New)
    };
    let filled = (0..).take_while(|number| fill(*number).is_ok()).count();
    let most = world.maps().most_flows as usize;
    assert_eq!(filled, most - world.newest());
    let users = world.users();
    let shown = world.client_sends(CLIENT_SIDE, SYN).tuple.dst;
    assert!(endpoints.iter().any(|ip| addr::<A>(*ip) == shown));
    assert_eq!((world.flows().len(), world.users()), (most, users), "one for one, and its port");
    for (key, flow) in world.flows().into_iter().filter(|(_, flow)| flow.reset != 0) {
        world.maps().flows.put(&key, &Flow { reset: 0, replied: 1, assured: 1, ..flow }, Put::Any).unwrap();
    }
    let another = (CLIENT_SIDE.0, CLIENT_SIDE.1 + 1);
    world.client_sends(another, SYN);
    assert_eq!((world.flow(another), world.users()), (None, users), "what lives stays");
}

fn a_connection_closed_on_one_side_lives_an_hour<A: Tried>() {
    for first_to_close in ["client", "endpoint"] {
        let world = World::<A>::new();
        let shown = world.open(CLIENT_SIDE);
        match first_to_close {
            "client" => drop(world.client_sends(CLIENT_SIDE, FIN | ACK)),
            _ => drop(world.endpoint_sends(&shown, FIN | ACK)),
        }
        world.pass_seconds(3_590);
        assert_eq!(world.endpoint_sends(&shown, ACK).tuple.dst, addr(CLIENT_SIDE.0), "{first_to_close}");
        assert_eq!(world.client_sends(CLIENT_SIDE, ACK).tuple, shown);
        world.client_sends(CLIENT_SIDE, FIN | ACK);
        world.endpoint_sends(&shown, FIN | ACK);
        assert_eq!(world.flow(CLIENT_SIDE).unwrap().stage(), Stage::Closed);
        world.pass_seconds(70);
        assert_eq!(world.users(), 1, "the endpoint may still remember the port");
        world.pass_seconds(6);
        assert_eq!((world.flow(CLIENT_SIDE), world.users()), (None, 0));
    }
}

fn an_open_connection_lives_a_day_and_a_reset_one_little_more_than_a_minute<A: Tried>() {
    let world = World::<A>::new();
    let shown = world.open(CLIENT_SIDE);
    world.pass_seconds(23 * 3600);
    assert_eq!(world.client_sends(CLIENT_SIDE, ACK).tuple, shown);
    world.endpoint_sends(&shown, RST);
    world.pass_seconds(76);
    assert_eq!(world.flow(CLIENT_SIDE), None);
}

fn a_clients_port_that_comes_round_again_keeps_its_port_behind_the_node<A: Tried>() {
    for ends in ENDS {
        let world = World::<A>::new();
        let shown = world.end(CLIENT_SIDE, ends);
        // Accepted, it lives as long as any other; its client has to be heard of for that, too.
        assert_eq!(world.client_sends(CLIENT_SIDE, SYN).tuple, shown, "{ends:?}");
        world.endpoint_sends(&shown, SYN | ACK);
        assert_eq!(world.flow(CLIENT_SIDE).unwrap().stage(), Stage::Replied);
        world.client_sends(CLIENT_SIDE, ACK);
        world.pass_seconds(23 * 3600);
        assert_eq!(world.endpoint_sends(&shown, ACK).tuple.dst, addr(CLIENT_SIDE.0));
        assert_eq!((world.flows().len(), world.users()), (1, 1));
    }
}

fn what_is_over_or_gave_way_does_not_count_for_its_clients_share<A: Tried>() {
    for ends in ENDS {
        let world = World::<A>::with_ports(2);
        let client = addr(CLIENT_SIDE.0);
        world.maps().shares.put(&client, &0, Put::Any).unwrap();
        let share = || world.maps().shares.get(&client).unwrap().unwrap();
        let shown = world.open(CLIENT_SIDE);
        assert_eq!(share(), 1);
        for (side, flags) in ends {
            match side {
                Side::Client => world.client_sends(CLIENT_SIDE, *flags),
                Side::Endpoint => world.endpoint_sends(&shown, *flags),
            };
        }
        assert_eq!(share(), 0, "{ends:?}");
        world.client_sends(CLIENT_SIDE, SYN);
        world.endpoint_sends(&shown, SYN | ACK);
        assert_eq!(share(), 1, "accepted anew");
        // Not assured yet, and the oldest: it gives way where others take all ports.
        world.pass_seconds(10);
        for other in [1, 2] {
            world.client_sends(([192, 168, 9, other], 4000), SYN);
        }
        assert_eq!((world.flow(CLIENT_SIDE), share()), (None, 0));
    }
}

fn an_opening_after_the_end_that_nobody_accepts_lives_no_longer_than_what_it_follows<A: Tried>() {
    for ends in ENDS {
        for answer in [None, Some(RST | ACK)] {
            let world = World::<A>::new();
            let shown = world.end(CLIENT_SIDE, ends);
            assert_eq!(world.client_sends(CLIENT_SIDE, SYN).tuple, shown);
            if let Some(flags) = answer {
                assert_eq!(world.endpoint_sends(&shown, flags).tuple.dst, addr(CLIENT_SIDE.0));
            }
            // What else its client says changes nothing.
            world.client_sends(CLIENT_SIDE, ACK);
            world.pass_seconds(76);
            assert_eq!((world.flow(CLIENT_SIDE), world.users()), (None, 0), "{ends:?} {answer:?}");
        }
    }
}

fn an_opening_after_the_end_follows_no_endpoint_that_its_service_lost<A: Tried>() {
    for ends in ENDS {
        let world = World::<A>::new();
        world.end(CLIENT_SIDE, ends);
        world.lead_to(&[[10, 245, 0, 9]]);
        assert_eq!(world.client_sends(CLIENT_SIDE, SYN).tuple.dst, addr([10, 245, 0, 9]), "{ends:?}");
        assert_eq!((world.flows().len(), world.users()), (1, 1));
    }
}

fn an_opening_goes_to_whose_port_it_is_now<A: Tried>() {
    let world = World::<A>::new();
    world.end(CLIENT_SIDE, ENDS[0]);
    // The endpoint goes on serving, by another port of the node.
    world.serve("default/web", NODE_PORT + 1, &[ENDPOINT], 0);
    world.serve("default/other", NODE_PORT, &[[10, 245, 0, 9]], 0);
    assert_eq!(world.client_sends(CLIENT_SIDE, SYN).tuple.dst, addr([10, 245, 0, 9]));
}

fn a_port_that_rests_is_taken_over_when_no_other_is_left_and_the_oldest_first<A: Tried>() {
    let world = World::<A>::with_ports(2);
    let client = |number| (CLIENT_SIDE.0, CLIENT_SIDE.1 + number);
    world.end(client(0), ENDS[2]);
    world.pass_seconds(10);
    let second = world.end(client(1), ENDS[2]);
    assert_eq!((world.flows().len(), world.users()), (2, 2), "what is unused comes first");
    world.open(client(2));
    assert_eq!((world.flow(client(0)), world.users()), (None, 2));
    assert_eq!(world.client_sends(client(1), ACK).tuple, second, "the younger one stays");
    world.open(client(3));
    assert_eq!((world.flow(client(1)), world.users()), (None, 2));
    // What lives does not give way.
    world.client_sends(client(4), SYN);
    assert_eq!((world.flow(client(4)), world.users()), (None, 2));
    world.client_sends(client(2), RST);
    world.open(client(4));
    assert_eq!((world.flow(client(2)), world.users()), (None, 2));
}

fn an_opening_that_comes_again_finds_its_answers<A: Tried>() {
    for flags in [0, Slot::KEEP_SOURCE] {
        let world = World::<A>::new();
        world.lead(&[ENDPOINT], flags);
        let shown = world.client_sends(CLIENT_SIDE, SYN).tuple;
        assert_eq!(shown.src == addr(CLIENT_SIDE.0), flags == Slot::KEEP_SOURCE);
        // The way back is gone, however that came to be.
        world.maps().snat.whole().unwrap().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        for (endpoint, _) in world.maps().exposed.entries().unwrap() {
            world.maps().exposed.remove(&endpoint).unwrap();
        }
        world.open(CLIENT_SIDE);
        assert_eq!((world.flows().len(), world.users()), (1, usize::from(flags == 0)));
        // And while it is there, an opening that comes again goes the same way.
        let world = World::<A>::new();
        world.lead(&[ENDPOINT], flags);
        let shown = world.client_sends(CLIENT_SIDE, SYN);
        assert_eq!(world.client_sends(CLIENT_SIDE, SYN), shown);
    }
}

fn an_opening_follows_no_endpoint_that_is_gone_and_a_connection_stays<A: Tried>() {
    let world = World::<A>::new();
    let shown = world.open(CLIENT_SIDE);
    world.lead_to(&[[10, 245, 0, 9]]);
    assert_eq!(world.client_sends(CLIENT_SIDE, ACK).tuple, shown, "it runs on");
    assert_eq!(world.client_sends(CLIENT_SIDE, SYN).tuple.dst, addr([10, 245, 0, 9]));
}

fn datagrams_move_on_with_the_next_when_their_endpoint_goes<A: Tried>() {
    let world = World::<A>::new();
    let ask =
        || world.pass(PacketHook::FromUplink, Segment { tuple: tuple(UDP, CLIENT_SIDE, (NODE, NODE_PORT)), flags: 0 });
    let shown = ask().tuple;
    assert_eq!(shown.dst, addr(ENDPOINT));
    assert_eq!(world.endpoint_sends(&shown, 0).tuple.dst, addr(CLIENT_SIDE.0));
    assert_eq!(ask().tuple, shown);
    world.lead_to(&[[10, 245, 0, 9]]);
    assert_eq!(ask().tuple.dst, addr([10, 245, 0, 9]));
    assert_eq!((world.flows().len(), world.users()), (1, 1));
}

fn the_sweep_takes_no_flow_that_was_used_since_it_looked<A: Tried>() {
    let world = World::<A>::new();
    world.open(CLIENT_SIDE);
    let key = tuple(TCP, CLIENT_SIDE, (NODE, NODE_PORT));
    let old = Flow { seen: 0, tick: 0, reset: 1, ..world.flow(CLIENT_SIDE).unwrap() };
    world.maps().flows.put(&key, &old, Put::Any).unwrap();
    let looked = world.flows();
    // The port comes round again between the look and the removal.
    world.open(CLIENT_SIDE);
    let (now, places) = (sys::monotonic_nanoseconds(), world.maps().places().unwrap());
    for (key, flow) in looked {
        assert!(flow.has_expired(TCP, now));
        world.maps().end_if_expired(&places, &key, now).unwrap();
    }
    assert!(world.flow(CLIENT_SIDE).is_some());
    assert_eq!(world.users(), 1);
}

fn a_flow_that_begins_while_the_sweep_removes_its_forerunner_goes_back<A: Tried>() {
    let world = World::<A>::new();
    let shown = world.open(CLIENT_SIDE);
    let key = tuple(TCP, CLIENT_SIDE, (NODE, NODE_PORT));
    // The sweep has seen an ended flow here; by now the client's port has come round again.
    world.maps().take_out(&world.maps().places().unwrap(), &key, |flow| flow.stage() == Stage::Closed).unwrap();
    assert_eq!(world.client_sends(CLIENT_SIDE, ACK).tuple, shown);
    assert_eq!(world.endpoint_sends(&shown, ACK).tuple.dst, addr(CLIENT_SIDE.0));
    world.client_sends(CLIENT_SIDE, RST);
    world.maps().take_out(&world.maps().places().unwrap(), &key, |flow| flow.stage() == Stage::Closed).unwrap();
    assert_eq!((world.flow(CLIENT_SIDE), world.users()), (None, 0));
}

fn a_place_without_a_flow_is_free_again_after_two_sweeps<A: Tried>() {
    let world = World::<A>::new();
    let shown = world.open(CLIENT_SIDE);
    world.maps().flows.remove(&tuple(TCP, CLIENT_SIDE, (NODE, NODE_PORT))).unwrap();
    let mut suspects = Suspects::default();
    world.kernel.maps.sweep(&mut suspects).unwrap();
    assert_eq!(world.users(), 1, "{shown:?} may be just beginning");
    world.kernel.maps.sweep(&mut suspects).unwrap();
    assert_eq!(world.users(), 0);
}

fn what_ended_is_swept_when_a_process_starts<A: Tried>() {
    let world = World::<A>::new();
    world.open(CLIENT_SIDE);
    for (key, flow) in world.flows() {
        world.maps().flows.put(&key, &Flow { seen: 0, reset: 1, ..flow }, Put::Any).unwrap();
    }
    let kernel = &world.kernel;
    let table = kernel.settle(&Contents::default());
    let shared = Shared::new(kernel.pins.clone(), Maps::open(&kernel.pins).unwrap(), table, SocketHooks::Absent);
    std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| shared.sweep_until_stopped());
        let deadline = Instant::now() + Duration::from_secs(5);
        while !world.flows().is_empty() {
            assert!(Instant::now() < deadline, "an ended flow stays");
            std::thread::sleep(Duration::from_millis(10));
        }
        shared.lock().tidy = Tidy::Stop;
        shared.wake.notify_all();
        sweeper.join().unwrap();
    });
}

fn an_element_that_was_recycled_is_no_flow_of_its_reader<A: Tried>() {
    let world = World::<A>::new();
    let shown = world.open(CLIENT_SIDE);
    let key = tuple(TCP, CLIENT_SIDE, (NODE, NODE_PORT));
    let flow = world.flow(CLIENT_SIDE).unwrap();
    // As a reader would find it whose element another flow has got: contents that are not the key's.
    let other = Flow { to: Tuple { dst: addr([10, 244, 0, 77]), ..flow.to }, ..flow };
    world.maps().flows.put(&key, &other, Put::Any).unwrap();
    assert_ne!(world.client_sends(CLIENT_SIDE, ACK).tuple.dst, addr([10, 244, 0, 77]));
    assert_ne!(world.endpoint_sends(&shown, ACK).tuple.dst, addr(CLIENT_SIDE.0));
}
