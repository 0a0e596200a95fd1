//! Carries connections from a listener made elsewhere (given as standard input) to an address that is reachable here.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;

use anyhow::{Context, Result};

/// Serves until it is ended.
pub fn forward(to: &str) -> Result<()> {
    let listener =
        TcpListener::from(io::stdin().as_fd().try_clone_to_owned().context("standard input is no listener")?);
    for client in listener.incoming() {
        let (client, to) = (client.context("accept failed")?, to.to_owned());
        thread::spawn(move || match TcpStream::connect(&to) {
            Ok(server) => carry(&client, &server),
            Err(error) => eprintln!("{to}: {error}"),
        });
    }
    Ok(())
}

/// Both ways, until both ends are done.
fn carry(client: &TcpStream, server: &TcpStream) {
    let one_way = |mut from: &TcpStream, mut to: &TcpStream| {
        // An end that breaks off is the end of the connection, as it would be without us.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|scope| {
        scope.spawn(|| one_way(server, client));
        one_way(client, server);
    });
}
