//! Renewing a server's certificate: when, at which address of the hub, and when to look again.

/// How often the certificate's age is checked, in milliseconds. It is renewed with a third of its
/// validity left, so an hour is early enough.
const LOOK_EVERY_MS: u64 = 3_600_000;
/// How often a server with an expired certificate tries to renew it, in milliseconds: it is cut off
/// until somebody fixes its clock or the hub's, and should be back a minute later.
const EXPIRED_EVERY_MS: u64 = 60_000;

/// The age of the certificate in use, by its server's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    Fresh,
    /// Another authority issues now, or another set of them is to be trusted.
    Replaced,
    /// Less than a third of its validity is left.
    Expiring,
    /// Peers and the hub refuse it.
    Expired,
}

/// What the shell does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Request a certificate at this one of the hub's addresses.
    Ask { address: usize },
    /// Nothing for that long; then [`Renewal::look`].
    Rest { for_ms: u64 },
}

/// How a request for a certificate ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The new certificate is on disk and in use.
    Renewed,
    /// The address did not answer, or the hub refused.
    NotIssued,
    /// The certificate does not fit this server's key and authority, or could not be stored: the
    /// old one stays. Another address leads to the same hub and the same disk.
    NotAccepted,
}

/// Renews one certificate after the other, over the addresses of one hub.
#[derive(Debug, Clone)]
pub struct Renewal {
    addresses: usize,
    asking: usize,
    age: Age,
}

impl Renewal {
    /// Over that many addresses of the hub.
    #[must_use]
    pub fn new(addresses: usize) -> Renewal {
        Renewal { addresses, asking: 0, age: Age::Fresh }
    }

    /// The start, or the end of a rest. An expired certificate is still worth a request:
    /// this server's clock may be the wrong one.
    pub fn look(&mut self, age: Age) -> Next {
        self.age = age;
        match age {
            Age::Fresh => self.rest(),
            Age::Replaced | Age::Expiring | Age::Expired => self.ask(0),
        }
    }

    /// A request has ended.
    pub fn asked(&mut self, asked: Asked) -> Next {
        match asked {
            Asked::NotIssued => self.ask(self.asking + 1),
            Asked::Renewed => {
                self.age = Age::Fresh;
                self.rest()
            }
            Asked::NotAccepted => self.rest(),
        }
    }

    fn ask(&mut self, address: usize) -> Next {
        self.asking = address;
        if address < self.addresses { Next::Ask { address } } else { self.rest() }
    }

    fn rest(&self) -> Next {
        Next::Rest {
            for_ms: match self.age {
                Age::Fresh | Age::Replaced | Age::Expiring => LOOK_EVERY_MS,
                Age::Expired => EXPIRED_EVERY_MS,
            },
        }
    }
}

#[cfg(test)]
#[path = "renewal_test.rs"]
mod renewal_test;
