//! What a fetch remembers of those that it asks.

use std::collections::BTreeSet;
use std::time::Instant;

use cohort_core::orders::Source;

use crate::mirrors::MirrorList;
use crate::plan::SourceId;
use crate::request::{Measured, RequestError};
use crate::sources::Sources;
use crate::{Limits, Offence};

fn mirrors() -> MirrorList {
    MirrorList::with_client(&["http://127.0.0.1:1/"], reqwest::Client::new()).unwrap()
}

fn fail(sources: &mut Sources, id: &SourceId, error: &RequestError) {
    let (measured, limits) = (Measured::default(), Limits::default());
    sources.began(id);
    sources.ended(id, Instant::now(), &measured, Some(error), 1_000, &limits);
}

#[test]
fn those_that_were_sent_away_together_do_not_return_together() {
    let busy = RequestError::Busy { retry_after_ms: 10_000 };
    let mut times = BTreeSet::new();
    for _ in 0..100 {
        let mut sources = Sources::new(&mirrors());
        let id = SourceId::Mirror(0);
        fail(&mut sources, &id, &busy);
        let until = sources.views()[&id].out_until_ms.unwrap();
        assert!(
            (11_000..=16_000).contains(&until),
            "never before it said, nor much later: {until}"
        );
        times.insert(until);
    }
    assert!(times.len() > 50, "{times:?}");
}

#[test]
fn what_a_server_did_is_named_although_nobody_names_the_server_any_more() {
    let mut sources = Sources::new(&mirrors());
    let source =
        |address: &str| Source { server: "bad".parse().unwrap(), address: address.to_owned() };
    let id = SourceId::Peer("bad".parse().unwrap());
    sources.follow(&[source("a:1")]);
    fail(&mut sources, &id, &RequestError::Length("too long".to_owned()));
    sources.follow(&[]);
    assert!(sources.views().keys().all(|id| matches!(id, SourceId::Mirror(_))));
    let report = sources.reports().into_iter().find(|report| report.name == "bad").unwrap();
    assert_eq!(report.offences[&Offence::WrongLength], 1);
    assert_eq!(report.failures, 0, "that it cannot be asked now is nobody's concern");
    // It is bounded.
    for n in 0..500 {
        let server = format!("s{n}").parse().unwrap();
        sources.follow(&[Source { server, address: "x:1".to_owned() }]);
        let id = SourceId::Peer(format!("s{n}").parse().unwrap());
        fail(&mut sources, &id, &RequestError::Length("too long".to_owned()));
    }
    sources.follow(&[]);
    assert!(sources.reports().len() <= 64);
}
