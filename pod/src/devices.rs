//! Which devices a container may use, on cgroup2: rules, assembled into a BPF program that the kernel asks at every
//! mknod(2) and open(2) of a device.
//!
//! cgroup2 has no device controller of its own, so without this a container with CAP_MKNOD (a default capability) reads
//! the node's disks. The program is a handful of instructions made from a container's own rules, without a map: the pod
//! process assembles and attaches it by two calls of bpf(2), where a loader and an object file would be several times
//! the code, and a second place that has to know when a container's cgroup comes and goes. Whoever removes the cgroup takes
//! it off before.
#![expect(unsafe_code, reason = "bpf(2) has no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

/// Bits of an access, as the kernel counts them.
pub const MKNOD: u32 = 1;
pub const READ: u32 = 2;
pub const WRITE: u32 = 4;
pub const ALL: u32 = MKNOD | READ | WRITE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Block = 1,
    Character = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    Deny,
}

/// One rule; `None` stands for every kind or number. The last rule that speaks of an access decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub verdict: Verdict,
    pub kind: Option<Kind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: u32,
}

const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
    Rule { verdict: Verdict::Allow, kind: Some(kind), major, minor, access }
}

const fn character(major: u32, minor: Option<u32>) -> Rule {
    allow(Kind::Character, Some(major), minor, ALL)
}

/// What every container may do, whatever its own rules say, as in other runtimes: make any node (opening it is another
/// question), and use the devices that are in every /dev.
pub const EVERY_CONTAINER: [Rule; 10] = [
    allow(Kind::Character, None, None, MKNOD),
    allow(Kind::Block, None, None, MKNOD),
    character(1, Some(3)), // null
    character(1, Some(5)), // zero
    character(1, Some(7)), // full
    character(1, Some(8)), // random
    character(1, Some(9)), // urandom
    character(5, Some(0)), // tty
    character(5, Some(2)), // ptmx
    character(136, None),  // pts
];

/// A program for a list of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(Vec<u64>);

impl Program {
    /// `None` when the rules allow everything. What no rule speaks of is refused.
    pub fn of(rules: &[Rule]) -> Option<Program> {
        // Backwards, the first rule that speaks of an access is the one that decides it.
        let mut program = Vec::from(PROLOGUE);
        for rule in rules.iter().rev() {
            if rule.speaks_of_everything() && rule.verdict == Verdict::Allow && program.len() == PROLOGUE.len() {
                return None;
            }
            rule.assemble(&mut program);
            if rule.speaks_of_everything() {
                return Some(Program(program)); // the verifier refuses instructions that are never reached
            }
        }
        program.extend(verdict(Verdict::Deny));
        Some(Program(program))
    }

    /// Gives the program to the kernel, which verifies it.
    ///
    /// # Errors
    /// `EPERM` without the right to load programs, `EINVAL` where the kernel was built without those of cgroups,
    /// `EACCES` where the verifier finds fault.
    pub fn load(&self) -> io::Result<Loaded> {
        let mut attributes = LoadAttributes {
            program_type: PROGRAM_TYPE_CGROUP_DEVICE,
            instruction_count: self.0.len() as u32,
            instructions: self.0.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: *b"amphipod_device\0",
        };
        let fd = bpf(PROGRAM_LOAD, &mut attributes)?;
        // SAFETY: a new descriptor is ours.
        Ok(Loaded(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// A program that the kernel has taken.
#[derive(Debug)]
pub struct Loaded(OwnedFd);

impl Loaded {
    /// From now on the program is asked for every process of this cgroup and those below, beside what is attached there
    /// already: each of them must allow.
    ///
    /// # Errors
    /// `EBADF` where the folder is none of cgroup2, `E2BIG` where it has all the programs it can have, `EPERM` where
    /// one above lets none be added.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> io::Result<()> {
        let mut attributes = AttachAttributes {
            target: cgroup.as_raw_fd() as u32,
            program: self.0.as_raw_fd() as u32,
            attach_type: ATTACH_CGROUP_DEVICE,
            flags: ALLOW_MULTI,
        };
        bpf(PROGRAM_ATTACH, &mut attributes).map(drop)
    }
}

/// Attaches the rules of every container to a cgroup2 folder: whether this kernel holds containers to theirs.
///
/// # Errors
/// As for [`Program::load`] and [`Loaded::attach`]: then it does not.
pub fn try_on(cgroup: &File) -> io::Result<()> {
    match Program::of(&EVERY_CONTAINER) {
        Some(program) => program.load()?.attach(cgroup.as_fd()),
        None => Ok(()),
    }
}

/// Takes the programs off a cgroup2 folder that is to go. The kernel would too, once nothing remembers the folder any
/// more: sockets do for long. One in which somebody still is keeps its rules.
///
/// # Errors
/// [`NotFound`](io::ErrorKind::NotFound) where the folder is gone; else the kernel's, of the first program that stays.
/// May be repeated.
pub fn let_go(folder: &Path) -> io::Result<()> {
    let processes = std::fs::read_to_string(folder.join("cgroup.procs"))?;
    if !processes.is_empty() {
        return Ok(());
    }
    let cgroup = File::open(folder)?;
    for id in attached(cgroup.as_fd())? {
        let fd = bpf(PROGRAM_BY_ID, &mut ByIdAttributes { id, next: 0, flags: 0 })?;
        // SAFETY: a new descriptor is ours.
        let program = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut attributes = AttachAttributes {
            target: cgroup.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            attach_type: ATTACH_CGROUP_DEVICE,
            flags: 0,
        };
        bpf(PROGRAM_DETACH, &mut attributes)?;
    }
    Ok(())
}

/// The programs of a folder itself. A folder of version 1 has none.
fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const MOST: usize = 64; // as many as the kernel takes
    let mut ids = [0_u32; MOST];
    let mut attributes = QueryAttributes {
        target: cgroup.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        unused: 0,
    };
    match bpf(PROGRAM_QUERY, &mut attributes) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(Vec::new()),
        outcome => outcome.map(|_| ids[..MOST.min(attributes.count as usize)].to_vec()),
    }
}

// ---- instructions ----

/// The context in r1 is `{access << 16 | kind, major, minor}`, each of 32 bits.
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const COPY: u8 = 0xbc;
const SET: u8 = 0xb4;
const JUMP: u8 = 0x05;
const JUMP_IF_NOT: u8 = 0x56;
const EXIT: u8 = 0x95;

const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: u32) -> u64 {
    code as u64 | (to as u64) << 8 | (from as u64) << 12 | (offset as u16 as u64) << 16 | (value as u64) << 32
}

const PROLOGUE: [u64; 6] = [
    instruction(LOAD_WORD, KIND, 1, 0, 0),
    instruction(COPY, ACCESS, KIND, 0, 0),
    instruction(AND, KIND, 0, 0, 0xffff),
    instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
    instruction(LOAD_WORD, MAJOR, 1, 4, 0),
    instruction(LOAD_WORD, MINOR, 1, 8, 0),
];

const fn verdict(verdict: Verdict) -> [u64; 2] {
    let answer = match verdict {
        Verdict::Allow => 1,
        Verdict::Deny => 0,
    };
    [instruction(SET, 0, 0, 0, answer), instruction(EXIT, 0, 0, 0, 0)]
}

impl Rule {
    fn speaks_of_everything(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access & ALL == ALL
    }

    /// Falls through to the next rule with those accesses left that nobody has decided yet.
    fn assemble(&self, program: &mut Vec<u64>) {
        let tests = [(KIND, self.kind.map(|kind| kind as u32)), (MAJOR, self.major), (MINOR, self.minor)];
        let tests: Vec<(u8, u32)> =
            tests.into_iter().filter_map(|(register, value)| Some((register, value?))).collect();
        let body = self.decide();
        for (passed, (register, value)) in tests.iter().enumerate() {
            let beyond = tests.len() - passed - 1 + body.len();
            program.push(instruction(JUMP_IF_NOT, *register, 0, beyond as i16, *value));
        }
        program.extend(body);
    }

    fn decide(&self) -> Vec<u64> {
        let [answer, exit] = verdict(self.verdict);
        match self.verdict {
            _ if self.access & ALL == ALL => vec![answer, exit],
            Verdict::Allow => vec![
                instruction(AND, ACCESS, 0, 0, !self.access),
                instruction(JUMP_IF_NOT, ACCESS, 0, 2, 0),
                answer,
                exit,
            ],
            Verdict::Deny => vec![
                instruction(COPY, SCRATCH, ACCESS, 0, 0),
                instruction(AND, SCRATCH, 0, 0, self.access),
                instruction(JUMP_IF_NOT, SCRATCH, 0, 1, 0),
                instruction(JUMP, 0, 0, 2, 0),
                answer,
                exit,
            ],
        }
    }
}

// ---- bpf(2) ----

const PROGRAM_LOAD: libc::c_int = 5;
const PROGRAM_ATTACH: libc::c_int = 8;
const PROGRAM_DETACH: libc::c_int = 9;
const PROGRAM_BY_ID: libc::c_int = 13;
const PROGRAM_QUERY: libc::c_int = 16;
const PROGRAM_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct ByIdAttributes {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct QueryAttributes {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    unused: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are one of the kernel's layouts for this command, of the given size, without padding; what
    // they point at outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Rule = Rule { verdict: Verdict::Deny, kind: None, major: None, minor: None, access: ALL };
    const EVERYTHING: Rule = Rule { verdict: Verdict::Allow, ..NOTHING };

    /// What the kernel would answer: the few instructions this file knows.
    fn run(program: &Program, kind: Kind, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind as u32, major, minor];
        let (mut registers, mut at) = ([0_u32; 11], 0_usize);
        loop {
            let word = program.0[at];
            let (code, to, from) = (word as u8, (word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, value) = ((word >> 16) as u16 as i16, (word >> 32) as u32);
            at += 1;
            let mut jump = |taken: bool| at = at.wrapping_add_signed(if taken { offset.into() } else { 0 });
            match code {
                LOAD_WORD => registers[to] = context[offset as usize / 4],
                COPY => registers[to] = registers[from],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                SET => registers[to] = value,
                JUMP => jump(true),
                JUMP_IF_NOT => jump(registers[to] != value),
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// The rules read as their documentation says: each bit is decided by the last rule that speaks of it.
    fn decided(rules: &[Rule], kind: Kind, access: u32, major: u32, minor: u32) -> bool {
        let matches = |rule: &&Rule, bit: u32| {
            rule.kind.is_none_or(|wanted| wanted == kind)
                && rule.major.is_none_or(|wanted| wanted == major)
                && rule.minor.is_none_or(|wanted| wanted == minor)
                && rule.access & bit != 0
        };
        let allowed = |bit: u32| rules.iter().rfind(|rule| matches(rule, bit)).map(|rule| rule.verdict);
        [MKNOD, READ, WRITE].iter().filter(|bit| access & **bit != 0).all(|bit| allowed(*bit) == Some(Verdict::Allow))
    }

    fn lists() -> Vec<Vec<Rule>> {
        let deny = |rule: Rule| Rule { verdict: Verdict::Deny, ..rule };
        let disk = allow(Kind::Block, Some(8), None, READ);
        vec![
            vec![],
            vec![NOTHING],
            EVERY_CONTAINER.to_vec(),
            [&[NOTHING][..], &EVERY_CONTAINER].concat(),
            [&EVERY_CONTAINER[..], &[NOTHING]].concat(),
            vec![EVERYTHING, deny(allow(Kind::Block, None, None, READ | WRITE))],
            vec![disk, allow(Kind::Block, Some(8), Some(1), WRITE), deny(allow(Kind::Block, Some(8), Some(2), READ))],
            vec![Rule { access: READ | MKNOD, ..EVERYTHING }, Rule { access: WRITE, ..EVERYTHING }],
        ]
    }

    #[test]
    fn every_access_is_decided_by_the_last_rule_that_speaks_of_it() {
        for rules in lists() {
            let program = Program::of(&rules).unwrap();
            for kind in [Kind::Block, Kind::Character] {
                for access in 1..=ALL {
                    for (major, minor) in [(1, 3), (1, 4), (8, 0), (8, 1), (8, 2), (10, 200), (136, 7), (254, 0)] {
                        let expected = decided(&rules, kind, access, major, minor);
                        let found = run(&program, kind, access, major, minor);
                        assert_eq!(found, expected, "{rules:?}: {kind:?} {major}:{minor} access {access}");
                    }
                }
            }
        }
    }

    #[test]
    fn allowing_everything_needs_no_program() {
        assert_eq!(Program::of(&[EVERYTHING]), None);
        assert_eq!(Program::of(&[NOTHING, EVERYTHING]), None);
    }

    #[test]
    fn a_folder_that_goes_lets_its_programs_go_first() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
        let folder = Path::new(line.split(' ').nth(1).unwrap()).join(format!("amphipod-test-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let cgroup = File::open(&folder).unwrap();
        let count = || attached(cgroup.as_fd()).map(|ids| ids.len());
        let outcome = try_on(&cgroup).and_then(|()| try_on(&cgroup)).and_then(|()| {
            let before = count()?;
            let_go(&folder)?;
            Ok((before, count()?))
        });
        std::fs::remove_dir(&folder).unwrap();
        assert_eq!(outcome.unwrap(), (2, 0));
    }

    #[test]
    fn the_kernel_accepts_every_program() {
        for rules in lists() {
            Program::of(&rules).unwrap().load().unwrap_or_else(|error| panic!("{rules:?}: {error}"));
        }
    }
}
