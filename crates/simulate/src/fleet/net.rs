//! Messages between servers and their group: each may be lost, come twice, or come late.

use cohort_core::ids::{BootEpoch, ServerId};
use cohort_core::orders::Orders;
use cohort_core::report::Report;

/// A message on its way.
#[derive(Debug, Clone)]
pub enum Message {
    /// A server asks for its orders.
    Ask {
        /// Who asks.
        server: ServerId,
        /// When it asked, by its own clock: orders age from here.
        asked_ms: u64,
        /// What it is doing, by app.
        doing: Vec<(cohort_core::ids::AppId, cohort_core::report::Step)>,
    },
    /// Its orders.
    Orders {
        /// For whom.
        server: ServerId,
        /// When they were asked for.
        asked_ms: u64,
        /// What to do; none when it does not belong to the group.
        orders: Option<Orders>,
    },
    /// A server says what it did.
    Report(Report),
    /// The report is in the log.
    Taken {
        /// Whose report.
        server: ServerId,
        /// Of which start of its agent.
        boot_epoch: BootEpoch,
        /// Which report.
        sequence: u64,
    },
}

impl Message {
    /// The server at one end of the way.
    #[must_use]
    pub fn server(&self) -> &ServerId {
        match self {
            Message::Ask { server, .. }
            | Message::Orders { server, .. }
            | Message::Taken { server, .. } => server,
            Message::Report(report) => &report.server,
        }
    }
}

/// How the network behaves, in parts of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Messages lost.
    pub lost: u32,
    /// Messages that come twice.
    pub twice: u32,
    /// Messages that come up to three seconds late.
    pub late: u32,
}

/// The messages of one group that are on their way.
#[derive(Debug, Clone, Default)]
pub struct Net {
    on_their_way: Vec<(u64, Message)>,
}

impl Net {
    /// Sends; `draw` gives numbers below its argument.
    pub fn send(
        &mut self,
        now_ms: u64,
        message: &Message,
        weather: Weather,
        draw: &mut dyn FnMut(u32) -> u32,
    ) {
        if weather.lost > 0 && draw(1000) < weather.lost {
            return;
        }
        let copies = if weather.twice > 0 && draw(1000) < weather.twice { 2 } else { 1 };
        for _ in 0..copies {
            let late = weather.late > 0 && draw(1000) < weather.late;
            let delay = if late { u64::from(draw(3000)) } else { 0 };
            self.on_their_way.push((now_ms + delay, message.clone()));
        }
    }

    /// Takes out what has arrived, in the order of sending.
    pub fn arrived(&mut self, now_ms: u64) -> Vec<Message> {
        let (here, there) =
            std::mem::take(&mut self.on_their_way).into_iter().partition(|(at, _)| *at <= now_ms);
        self.on_their_way = there;
        let here: Vec<(u64, Message)> = here;
        here.into_iter().map(|(_, message)| message).collect()
    }
}
