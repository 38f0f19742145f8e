use std::collections::{BTreeMap, BTreeSet};

use cohort_core::reason::DebtReason;
use cohort_core::waiting::WaitingOn;
use cohort_wire::agent::GroupStatus;

use super::ServerReport;
use crate::report::report_test::NOW_S;
use crate::report::{Asked, FleetReport, Origin, Picture};
use crate::sample::{app, rolling, server, settled, waiting};
use crate::table::Look;

fn report(status: GroupStatus) -> FleetReport {
    let asked = Asked {
        group: status.group.clone(),
        status: Ok(status),
        registry: BTreeMap::new(),
        joined: BTreeSet::new(),
    };
    let picture =
        Picture { origin: Origin::sound_hub(), apps: BTreeSet::from([app()]), groups: vec![asked] };
    FleetReport::of(picture, NOW_S)
}

#[test]
fn a_server_is_healthy_if_it_serves_and_nothing_of_it_waits() {
    let rests = report(settled());
    for name in ["web-1", "web-2", "web-3"] {
        assert!(ServerReport::of(&rests.groups[0], &server(name)).healthy, "{name}");
    }
    // What another server owes is not its own.
    let mut owes = settled();
    let app = owes.apps.get_mut(&app()).unwrap();
    app.servers.get_mut(&server("web-2")).unwrap().debt = Some(DebtReason::Joined);
    let reason = DebtReason::Joined;
    let debt = WaitingOn::Debt { server: server("web-2"), reason, again_ms: None };
    app.waiting = vec![waiting(debt, 1_000)];
    let owes = report(owes);
    assert!(ServerReport::of(&owes.groups[0], &server("web-1")).healthy);
    assert!(!ServerReport::of(&owes.groups[0], &server("web-2")).healthy);
    let moving = report(rolling());
    let (it, stranger) = (server("web-2"), server("web-9"));
    let busy = ServerReport::of(&moving.groups[0], &it);
    assert!(!busy.healthy && busy.apps.len() == 1, "{busy:?}");
    let text = busy.text(&moving.groups[0], Look::PLAIN);
    assert!(text.starts_with("server web-2 of "), "{text}");
    let joining = ServerReport::of(&moving.groups[0], &stranger);
    assert!(!joining.healthy && joining.known.is_none() && joining.waits.len() == 1);
    let mut lost = settled();
    lost.servers.get_mut(&it).unwrap().unknown = true;
    assert!(!ServerReport::of(&report(lost).groups[0], &it).healthy, "what is known of it is old");
}
