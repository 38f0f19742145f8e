//! A zone's network: a switch, and servers on limited links.
//!
//! ```text
//!   mirror ──(downlink)── switch ──(NIC)── one namespace per server
//! ```
//!
//! The switch is a bridge in the namespace of the benchmark itself, where the hub runs as well. Both
//! ends of every link have a `tc tbf`; the mirror's own end is the zone's downlink, and what it has
//! sent is what crossed that.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Where the hub listens, and where services are asked from: the switch.
pub(super) const SWITCH: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// Where the origin of all bytes is: beyond the downlink.
pub(super) const MIRROR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 250);

/// A caching proxy in the zone.
pub(super) const PROXY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 251);

/// What the mirror may be sent, in Mbit/s: requests and acknowledgements are not what is limited.
const UPLINK_MBIT: u32 = 1_000;

/// The fastest link of a server (as the design has it), in Mbit/s.
const NIC_MBIT_MAX: u32 = 500;

/// Bucket of a link up to [`NIC_MBIT_MAX`], in KiB: a millisecond at 250 Mbit/s.
const BURST_KIB: u32 = 32;

/// Bucket of a faster one: a timer that is late on a busy machine would be the limit instead.
const BURST_KIB_FAST: u32 = 256;

/// What TCP hands to a link at once, at most, in bytes. The kernel's 64 KiB do not fit into the
/// bucket: it would cut them into packets and wait for each of them with a timer of its own, which
/// costs as much as all the rest, and the link loses what the timers are late.
const SEGMENT_BYTES_MAX: u32 = 30_000;

/// The namespace of the mirror.
pub(super) const MIRROR_NAME: &str = "mirror";

/// The network of one zone.
#[derive(Debug)]
pub(super) struct Network {
    names: Vec<String>,
}

impl Network {
    /// A switch and a mirror behind a downlink.
    pub(super) fn new(downlink_mbit: u32) -> Result<Network> {
        let address = format!("{SWITCH}/24");
        ip(&["link", "add", "br0", "type", "bridge"])?;
        // A switch has no firewall; where the kernel would call it for every packet, it is paid for
        // by whichever process runs just then.
        for table in ["iptables", "ip6tables", "arptables"] {
            let call = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
            if std::path::Path::new(&call).exists() {
                std::fs::write(&call, "0").with_context(|| call.clone())?;
            }
        }
        ip(&["addr", "add", &address, "dev", "br0"])?;
        ip(&["link", "set", "br0", "up"])?;
        let mut network = Network { names: Vec::new() };
        network.join(MIRROR_NAME, MIRROR, downlink_mbit, UPLINK_MBIT)?;
        Ok(network)
    }

    /// A namespace with a link to the switch: how fast it may send, and be sent to.
    pub(super) fn join(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        send_mbit: u32,
        receive_mbit: u32,
    ) -> Result<()> {
        let [a, b, c, d] = address.octets();
        // An address that comes again with another card is not found until its neighbours forget.
        let mac = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        let (port, address) = (port(name), format!("{address}/24"));
        ip(&["netns", "add", name])?;
        self.names.push(name.to_owned());
        let peer = ["peer", "name", "eth0", "address", &mac, "netns", name];
        ip(&[&["link", "add", &port, "type", "veth"], &peer[..]].concat())?;
        ip(&["link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", name, "addr", "add", &address, "dev", "eth0"])?;
        if send_mbit <= NIC_MBIT_MAX {
            let most = SEGMENT_BYTES_MAX.to_string();
            ip(&["-n", name, "link", "set", "eth0", "gso_max_size", &most])?;
        }
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        self.limit(name, send_mbit, receive_mbit)
    }

    /// Takes a namespace and its link away.
    pub(super) fn leave(&mut self, name: &str) -> Result<()> {
        self.names.retain(|known| known != name);
        // The peer goes with it.
        ip(&["link", "del", &port(name)])?;
        ip(&["netns", "del", name]).map(drop)
    }

    /// Limits a link anew.
    pub(super) fn limit(&self, name: &str, send_mbit: u32, receive_mbit: u32) -> Result<()> {
        let tbf = |rate: u32| {
            let burst_kb = if rate <= NIC_MBIT_MAX { BURST_KIB } else { BURST_KIB_FAST };
            format!("root tbf rate {rate}mbit burst {burst_kb}kb latency 40ms")
        };
        tc(&format!("-n {name} qdisc replace dev eth0 {}", tbf(send_mbit)))?;
        tc(&format!("qdisc replace dev {} {}", port(name), tbf(receive_mbit)))?;
        Ok(())
    }

    /// Limits the downlink anew.
    pub(super) fn limit_downlink(&self, mbit: u32) -> Result<()> {
        self.limit(MIRROR_NAME, mbit, UPLINK_MBIT)
    }

    /// Bytes that crossed the downlink since the beginning, headers included.
    pub(super) fn downlink_bytes(&self) -> Result<u64> {
        self.sent_bytes(MIRROR_NAME)
    }

    /// Bytes that a server has sent since the beginning, headers included.
    pub(super) fn sent_bytes(&self, name: &str) -> Result<u64> {
        let text = tc(&format!("-n {name} -s -j qdisc show dev eth0"))?;
        let all: serde_json::Value = serde_json::from_str(&text)?;
        all[0]["bytes"].as_u64().with_context(|| format!("no count of bytes in {text}"))
    }

    /// Whether a server has a connection to the mirror.
    pub(super) fn asks_mirror(&self, name: &str) -> Result<bool> {
        let mirror = MIRROR.to_string();
        let args = ["netns", "exec", name, "ss", "-Htn", "state", "established", "dst", &mirror];
        Ok(!ip(&args)?.trim().is_empty())
    }

    /// How a command line begins that runs at a server.
    pub(super) fn at(name: &str) -> Vec<String> {
        ["ip", "netns", "exec", name].map(str::to_owned).to_vec()
    }

    /// A program that runs at a server.
    pub(super) fn command(name: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name, program]);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "del", name]);
            // The link goes with the namespace, but not at once.
            let _ = ip(&["link", "del", &port(name)]);
        }
        let _ = ip(&["link", "del", "br0"]);
    }
}

/// The switch's end of a link; names of interfaces have 15 characters at the most.
fn port(name: &str) -> String {
    format!("p-{name}")
}

fn ip(args: &[&str]) -> Result<String> {
    output(Command::new("ip").args(args))
}

fn tc(args: &str) -> Result<String> {
    output(Command::new("tc").args(args.split(' ')))
}

/// Runs a command to its end; its standard output.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
