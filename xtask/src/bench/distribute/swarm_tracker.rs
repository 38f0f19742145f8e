//! A minimal BitTorrent tracker, and a minimal torrent: for the swarm in the comparison.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::network::output;

/// Longest request line accepted.
const LINE_BYTES_MAX: u64 = 4_096;

/// Timeout of a client's reads and writes.
const CLIENT_MAX: Duration = Duration::from_secs(5);

/// Seconds between announcements: short, so that late starters are soon known to all.
const ANNOUNCE_EVERY_S: u32 = 1;

/// Bytes of a piece: 256 KiB, as in the measured baselines.
const PIECE: &str = "262144";

/// Answers announcements with every client that ever announced, until this process ends. Returns
/// its address.
pub(super) fn start(ip: Ipv4Addr) -> Result<SocketAddr> {
    let listener = TcpListener::bind((ip, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        let mut peers = BTreeSet::new();
        for client in listener.incoming().flatten() {
            // A failing client must not affect the others.
            let _ = answer(&client, &mut peers);
        }
    });
    Ok(address)
}

fn answer(client: &TcpStream, peers: &mut BTreeSet<SocketAddrV4>) -> std::io::Result<()> {
    client.set_read_timeout(Some(CLIENT_MAX))?;
    client.set_write_timeout(Some(CLIENT_MAX))?;
    let IpAddr::V4(ip) = client.peer_addr()?.ip() else { return Ok(()) };
    let mut reader = BufReader::new(client.take(LINE_BYTES_MAX));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let port = request.split(['?', '&', ' ']).find_map(|part| part.strip_prefix("port="));
    if let Some(port) = port.and_then(|port| port.parse().ok()) {
        peers.insert(SocketAddrV4::new(ip, port));
    }
    let mut body =
        format!("d8:intervali{ANNOUNCE_EVERY_S}e5:peers{}:", peers.len() * 6).into_bytes();
    for peer in peers.iter() {
        body.extend(peer.ip().octets());
        body.extend(peer.port().to_be_bytes());
    }
    body.push(b'e');
    let mut client = client;
    write!(client, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
    client.write_all(&body)
}

/// Writes a torrent of one file. Hashes come from the system's `split` and `sha1sum`: Cohort itself
/// never needs SHA-1.
pub(super) fn write_torrent(file: &Path, tracker: SocketAddr, to: &Path) -> Result<()> {
    let name = file.file_name().and_then(|name| name.to_str()).context("a file with a name")?;
    let length = std::fs::metadata(file)?.len();
    let mut split = Command::new("split");
    let sums = output(split.args(["--bytes", PIECE, "--filter", "sha1sum"]).arg(file))?;
    let mut hashes = Vec::new();
    for sum in sums.lines().filter_map(|line| line.split(' ').next()) {
        ensure!(sum.len() == 40 && sum.is_ascii(), "sha1sum said {sum}");
        hashes.extend(hex::decode(sum)?);
    }
    let announce = format!("http://{tracker}/announce");
    let mut torrent = format!(
        "d8:announce{}:{announce}4:infod6:lengthi{length}e4:name{}:{name}12:piece lengthi{PIECE}e\
         6:pieces{}:",
        announce.len(),
        name.len(),
        hashes.len()
    )
    .into_bytes();
    torrent.extend(hashes);
    torrent.extend(b"ee");
    std::fs::write(to, torrent)?;
    Ok(())
}
