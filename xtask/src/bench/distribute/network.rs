//! A zone's network: a switch, and servers on limited links.
//!
//! ```text
//!   mirror ──(downlink)── switch ──(NIC)── one namespace per server
//! ```
//!
//! The switch is a bridge in the benchmark's own namespace, where the hub runs too. Both ends of
//! every link have a `tc tbf`; the mirror's end is the zone's downlink, and what it sent crossed
//! it.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The switch: the hub listens here, and probes of services come from here.
pub(super) const SWITCH: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// The origin, behind the downlink.
pub(super) const MIRROR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 250);

/// Rate towards the mirror, in Mbit/s: high enough for requests and acknowledgements.
const UPLINK_MBIT: u32 = 1_000;

/// Fastest link of a server in any row, in Mbit/s.
const NIC_MBIT_MAX: u32 = 500;

/// Bucket of a link up to [`NIC_MBIT_MAX`], in KiB: a millisecond at 250 Mbit/s.
const BURST_KIB: u32 = 32;

/// Bucket of a faster link: with a smaller one, late timers would be the limit.
const BURST_KIB_FAST: u32 = 256;

/// Largest TCP segment handed to a link, in bytes. The kernel's default of 64 KiB does not fit into
/// the bucket: it would be split into packets with a timer for each, which costs as much CPU as
/// everything else, and the link loses the lateness of the timers.
const SEGMENT_BYTES_MAX: u32 = 30_000;

pub(super) const MIRROR_NAME: &str = "mirror";

#[derive(Debug)]
pub(super) struct Network {
    names: Vec<String>,
}

impl Network {
    /// A switch and a mirror behind a downlink.
    pub(super) fn new(downlink_mbit: u32) -> Result<Network> {
        run(&format!(
            "ip link add br0 type bridge
             ip addr add {SWITCH}/24 dev br0
             ip link set br0 up"
        ))?;
        // A real switch has no firewall. If the kernel called ours for every packet, the process
        // running at that moment would pay for it.
        for table in ["iptables", "ip6tables", "arptables"] {
            let call = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
            if std::path::Path::new(&call).exists() {
                std::fs::write(&call, "0").with_context(|| call.clone())?;
            }
        }
        let mut network = Network { names: Vec::new() };
        network.join(MIRROR_NAME, MIRROR, downlink_mbit, UPLINK_MBIT)?;
        Ok(network)
    }

    /// Creates a namespace with a link to the switch, limited in both directions.
    pub(super) fn join(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        send_mbit: u32,
        receive_mbit: u32,
    ) -> Result<()> {
        self.names.push(name.to_owned());
        let port = port(name);
        run(&format!(
            "ip netns add {name}
             ip link add {port} type veth peer name eth0 netns {name}
             ip link set {port} master br0 up
             ip -n {name} addr add {address}/24 dev eth0"
        ))?;
        if send_mbit <= NIC_MBIT_MAX {
            run(&format!("ip -n {name} link set eth0 gso_max_size {SEGMENT_BYTES_MAX}"))?;
        }
        run(&format!("ip -n {name} link set eth0 up\nip -n {name} link set lo up"))?;
        self.limit(name, send_mbit, receive_mbit)
    }

    pub(super) fn limit(&self, name: &str, send_mbit: u32, receive_mbit: u32) -> Result<()> {
        let tbf = |rate: u32| {
            let burst_kb = if rate <= NIC_MBIT_MAX { BURST_KIB } else { BURST_KIB_FAST };
            format!("root tbf rate {rate}mbit burst {burst_kb}kb latency 40ms")
        };
        let (port, send, receive) = (port(name), tbf(send_mbit), tbf(receive_mbit));
        run(&format!(
            "tc -n {name} qdisc replace dev eth0 {send}
             tc qdisc replace dev {port} {receive}"
        ))?;
        Ok(())
    }

    pub(super) fn limit_downlink(&self, mbit: u32) -> Result<()> {
        self.limit(MIRROR_NAME, mbit, UPLINK_MBIT)
    }

    /// Total bytes through the downlink, including headers.
    pub(super) fn downlink_bytes(&self) -> Result<u64> {
        self.sent_bytes(MIRROR_NAME)
    }

    /// Total bytes that a server has sent, including headers.
    pub(super) fn sent_bytes(&self, name: &str) -> Result<u64> {
        let text = run(&format!("tc -n {name} -s -j qdisc show dev eth0"))?;
        let all: serde_json::Value = serde_json::from_str(&text)?;
        all[0]["bytes"].as_u64().with_context(|| format!("no count of bytes in {text}"))
    }

    /// Whether a server has a connection to the mirror.
    pub(super) fn asks_mirror(&self, name: &str) -> Result<bool> {
        let at = format!("ip netns exec {name}");
        let found = run(&format!("{at} ss -Htn state established dst {MIRROR}"))?;
        Ok(!found.trim().is_empty())
    }

    /// Prefix of a command line that runs on a server.
    pub(super) fn at(name: &str) -> Vec<String> {
        ["ip", "netns", "exec", name].map(str::to_owned).to_vec()
    }

    /// A program that runs on a server.
    pub(super) fn command(name: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name, program]);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            // The link disappears with the namespace, but with a delay.
            let _ = run(&format!("ip netns del {name}"));
            let _ = run(&format!("ip link del {}", port(name)));
        }
        let _ = run("ip link del br0");
    }
}

/// The switch's end of a link; interface names have at most 15 characters.
fn port(name: &str) -> String {
    format!("p-{name}")
}

/// Runs commands, one a line, and returns the standard output of all.
fn run(script: &str) -> Result<String> {
    let mut all = String::new();
    for line in script.lines() {
        let mut words = line.split_whitespace();
        let program = words.next().context("a command in every line")?;
        all.push_str(&output(Command::new(program).args(words))?);
    }
    Ok(all)
}

/// Runs a command and returns its standard output.
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
