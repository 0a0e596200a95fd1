//! One emulated machine: its start, its output as it comes, its end in bounded time.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::root::Root;

/// A link that the machines of one run share: datagrams to a group of this machine's loopback.
pub struct Link(u16);

impl Link {
    pub fn choose() -> Result<Link> {
        Ok(Link(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port()))
    }
}

/// How a machine ended.
pub enum End {
    Done(ExitCode),
    /// Before the command said anything; with the end of its console.
    NeverBegan(String),
}

pub struct Machine {
    emulator: Child,
    folder: PathBuf,
}

impl Machine {
    pub fn start(root: &Root, luggage: &Path, link: &Link, number: u8, run: &Path) -> Result<Machine> {
        let folder = run.join(format!("node{number}"));
        // What an earlier start left.
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let file = |name: &str| format!("file:{}", folder.join(name).display());
        let disk = |path: &Path, more: &str| format!("file={},if=virtio,format=raw,{more}", path.display());
        let words =
            format!("root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.hostname=node{number} net.ifnames=0");
        let emulator = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&root.kernel)
            .arg("-initrd")
            .arg(&root.initrd)
            .args(["-append", &words])
            // Nothing a run does reaches the disk that all runs share.
            .args(["-drive", &disk(&root.disk, "snapshot=on"), "-drive", &disk(luggage, "readonly=on")])
            .args(["-serial", &file("console"), "-serial", &file("output"), "-serial", &file("status")])
            .args(["-netdev", &format!("socket,id=link,mcast=239.91.0.1:{},localaddr=127.0.0.1", link.0)])
            .args(["-device", &format!("virtio-net-pci,netdev=link,mac=52:54:00:91:00:{number:02x}")])
            .args(["-device", "virtio-rng-pci"])
            .env("TMPDIR", &folder)
            .stdin(Stdio::null())
            .stdout(File::create(folder.join("emulator"))?)
            .stderr(File::create(folder.join("errors"))?)
            .spawn()
            .context("run qemu-system-x86_64 (apt-get install qemu-system-x86)")?;
        Ok(Machine { emulator, folder })
    }

    /// Shows what the command says until the machine has switched itself off.
    pub fn finish(mut self, patience: Duration) -> Result<End> {
        let deadline = Instant::now() + patience;
        let mut output = File::open(self.await_file("output", deadline)?)?;
        while self.emulator.try_wait()?.is_none() {
            pass_on(&mut output)?;
            if Instant::now() > deadline {
                bail!("the machine was not done after {patience:?}; its console:\n{}", self.end_of("console"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        pass_on(&mut output)?;
        let status = fs::read_to_string(self.folder.join("status"))?;
        match status.trim().parse::<u8>() {
            Ok(code) => Ok(End::Done(ExitCode::from(code))),
            Err(_) if output.metadata()?.len() == 0 => Ok(End::NeverBegan(self.end_of("console"))),
            Err(_) => bail!(
                "the machine ended without a result; its console:\n{}{}",
                self.end_of("console"),
                self.end_of("errors")
            ),
        }
    }

    fn await_file(&mut self, name: &str, deadline: Instant) -> Result<PathBuf> {
        let path = self.folder.join(name);
        while !path.exists() && self.emulator.try_wait()?.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if !path.exists() {
            bail!("the emulator did not start: {}", self.end_of("errors"));
        }
        Ok(path)
    }

    fn end_of(&self, name: &str) -> String {
        let bytes = fs::read(self.folder.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4000)..]).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // One that has ended is only reaped.
        if let Err(error) = self.emulator.kill().and_then(|()| self.emulator.wait().map(drop)) {
            eprintln!("vm: the emulator: {error}");
        }
    }
}

fn pass_on(output: &mut File) -> Result<()> {
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes)?;
    let mut own = std::io::stdout().lock();
    own.write_all(&bytes)?;
    Ok(own.flush()?)
}
