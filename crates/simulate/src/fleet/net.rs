//! Messages between servers and their group: each may be lost, come twice, or come late.

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, ServerId};
use cohort_core::report::{Report, Step};
use cohort_server::asking::{Input, Question};
use cohort_transfer::tracker::{TransferAnswer, TransferRequest};

/// A message in flight. `id` pairs an answer with its question, as a connection does.
#[derive(Debug, Clone)]
pub enum Message {
    /// A server asks a member.
    Ask {
        /// Who asks.
        server: ServerId,
        /// Which question.
        id: u64,
        /// The server whose member is asked.
        to: ServerId,
        /// What.
        question: Question,
        /// What the server is doing, by app.
        doing: BTreeMap<AppId, Step>,
    },
    /// The answer to [`Message::Ask`].
    Answer {
        /// To whom.
        server: ServerId,
        /// To which question.
        id: u64,
        /// What came of it.
        input: Input,
    },
    /// A server reports what it did.
    Report {
        /// Which request.
        id: u64,
        /// The server whose member is told.
        to: ServerId,
        /// Oldest first; never empty.
        reports: Vec<Report>,
    },
    /// A server tells the leader's tracker how far its transfers are.
    Transfer {
        /// Who reports.
        server: ServerId,
        /// Which request.
        id: u64,
        /// The server that leads, as far as the sender knows.
        to: ServerId,
        /// The state of its transfers.
        request: TransferRequest,
    },
    /// The tracker's answer.
    Guided {
        /// To whom.
        server: ServerId,
        /// To which request.
        id: u64,
        /// What to fetch from whom; `None`: that server does not lead, or refused.
        answer: Option<TransferAnswer>,
    },
    /// The reports are in the log.
    Taken {
        /// Whose reports.
        server: ServerId,
        /// Which request.
        id: u64,
        /// Which of them were accepted; `None`: the member did not take the request.
        taken: Option<Vec<bool>>,
    },
}

impl Message {
    /// The server at one end of the way.
    #[must_use]
    pub fn server(&self) -> &ServerId {
        match self {
            Message::Ask { server, .. }
            | Message::Answer { server, .. }
            | Message::Transfer { server, .. }
            | Message::Guided { server, .. }
            | Message::Taken { server, .. } => server,
            Message::Report { reports, .. } => &reports[0].server,
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

/// The messages of one group that are in flight.
#[derive(Debug, Clone, Default)]
pub struct Net {
    in_flight: Vec<(u64, Message)>,
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
            self.in_flight.push((now_ms + delay, message.clone()));
        }
    }

    /// Takes out what has arrived, in the order of sending.
    pub fn arrived(&mut self, now_ms: u64) -> Vec<Message> {
        let arrived = self.in_flight.extract_if(.., |(at, _)| *at <= now_ms);
        arrived.map(|(_, message)| message).collect()
    }
}
