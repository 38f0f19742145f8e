//! DSCP marking: packets that may wait for others.
//!
//! Artifacts are not interactive traffic, so their packets are marked *lower effort* (RFC 8622). A
//! network that honours the mark sends everything else first; others ignore it.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

/// Largest code point: six bits.
const CODE_POINT_MAX: u8 = 63;

/// A DSCP value (RFC 2474), 0 to 63; its text is `le`, `default` or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dscp(u8);

impl Dscp {
    /// Best effort: no mark.
    pub const DEFAULT: Dscp = Dscp(0);
    /// Lower effort (RFC 8622): yields to everything else.
    pub const LOWER_EFFORT: Dscp = Dscp(1);

    /// The header byte; its lower two bits are for congestion notification.
    #[must_use]
    pub fn traffic_class(self) -> u8 {
        self.0 << 2
    }

    /// Marks the packets that a connection sends from now on.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn mark(self, stream: &TcpStream) -> io::Result<()> {
        let class = self.traffic_class();
        if stream.local_addr()?.is_ipv6() {
            sockopt::set_ipv6_tclass(stream, u32::from(class))?;
            // For IPv4-mapped addresses; fails harmlessly for others.
            let _ = sockopt::set_ip_tos(stream, class);
            return Ok(());
        }
        Ok(sockopt::set_ip_tos(stream, class)?)
    }

    /// As [`mark`](Self::mark), for connections that may also go unmarked.
    pub(crate) fn try_mark(self, stream: &TcpStream) {
        if self == Self::DEFAULT {
            return;
        }
        if let Err(error) = self.mark(stream) {
            tracing::debug!(%error, class = %self, "cannot set DSCP on a connection");
        }
    }
}

impl Default for Dscp {
    fn default() -> Self {
        Self::LOWER_EFFORT
    }
}

impl FromStr for Dscp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "le" => return Ok(Self::LOWER_EFFORT),
            "default" => return Ok(Self::DEFAULT),
            _ => {}
        }
        match text.parse() {
            Ok(point @ 0..=CODE_POINT_MAX) => Ok(Self(point)),
            Ok(_) | Err(_) => Err(format!(
                "invalid DSCP value `{text}`: use `le`, `default` or a number up to 63"
            )),
        }
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::LOWER_EFFORT => f.write_str("le"),
            Self::DEFAULT => f.write_str("default"),
            Self(point) => write!(f, "{point}"),
        }
    }
}

impl Serialize for Dscp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Dscp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rustix::net::sockopt;
    use tokio::net::{TcpListener, TcpStream};

    use super::Dscp;

    #[test]
    fn marks_are_read_and_written() {
        for (text, class, again) in
            [("le", 4, "le"), ("1", 4, "le"), ("default", 0, "default"), ("8", 32, "8")]
        {
            let dscp: Dscp = text.parse().unwrap();
            assert_eq!((dscp.traffic_class(), dscp.to_string().as_str()), (class, again));
        }
        assert_eq!("63".parse::<Dscp>().unwrap().traffic_class(), 252);
        for wrong in ["", "64", "-1", "LE", "low effort", "256"] {
            assert!(wrong.parse::<Dscp>().is_err(), "{wrong}");
        }
    }

    async fn connected(address: &str) -> Option<TcpStream> {
        // Machines without IPv6 have nothing to mark there.
        let listener = TcpListener::bind(address).await.ok()?;
        let address: SocketAddr = listener.local_addr().unwrap();
        Some(TcpStream::connect(address).await.unwrap())
    }

    #[tokio::test]
    async fn both_versions_of_the_internet_protocol_are_marked() {
        let four = connected("127.0.0.1:0").await.unwrap();
        Dscp::LOWER_EFFORT.mark(&four).unwrap();
        assert_eq!(sockopt::ip_tos(&four).unwrap(), 0x04);
        Dscp::DEFAULT.mark(&four).unwrap();
        assert_eq!(sockopt::ip_tos(&four).unwrap(), 0);
        if let Some(six) = connected("[::1]:0").await {
            Dscp::LOWER_EFFORT.mark(&six).unwrap();
            assert_eq!(sockopt::ipv6_tclass(&six).unwrap(), 0x04);
        }
    }
}
