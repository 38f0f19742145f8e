use std::sync::Arc;

use cohort_core::Body;
use cohort_core::doing::Doing;
use cohort_core::ids::{ClockMs, Generation, Incarnation};
use cohort_core::orders::{Fence, Purpose};
use cohort_core::phase::PhaseName;
use cohort_core::reason::Unfit;
use cohort_core::report::Step;
use cohort_core::state::{Activation, ActivationStage, Process};
use cohort_server::member::View;

use super::group_status;
use crate::testing::{GROUP, Lab, apply, founded, policy, web};

/// `s1` founded the group, `s2` is a server of it.
fn view(lab: &Lab) -> View {
    let mut state = founded();
    let (server, address) = ("s2".parse().unwrap(), "10.0.0.2:1".to_owned());
    apply(
        &mut state,
        Body::AddServer {
            server,
            address,
            rack: Some("r2".to_owned()),
            process: Process::default(),
        },
    );
    apply(&mut state, policy());
    View { state: Arc::new(state), ..lab.leading() }
}

#[tokio::test]
async fn the_status_has_the_groups_members_servers_and_apps() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let status = group_status(&shared, &view(&lab), true);
    assert_eq!((status.group.as_str(), status.linearizable), (GROUP, true));
    assert_eq!(status.leader.as_ref().map(|leader| leader.as_str()), Some("s1"));
    let voters: Vec<&str> = status.voters.iter().map(|voter| voter.server.as_str()).collect();
    assert_eq!((voters, status.standbys.len()), (vec!["s1"], 0));
    let (one, two) = (&status.servers["s1"], &status.servers["s2"]);
    assert!(one.member.is_some() && two.member.is_none());
    assert_eq!(two.rack.as_deref(), Some("r2"));
    let app = &status.apps[&web()];
    assert_eq!((app.state, app.paused, app.wave), (PhaseName::Empty, false, 0));
    assert!(app.last_good.is_none() && app.target.is_none() && app.failures.is_empty());
    assert_eq!(app.servers.len(), 2);
}

#[tokio::test]
async fn a_server_has_the_age_of_its_last_question_and_none_before_the_first() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    shared.contacts.heard(&"s2".parse().unwrap(), 0, Default::default());
    let status = group_status(&shared, &view(&lab), true);
    let age = |server: &str| status.servers[server].contact_age_ms;
    assert_eq!((age("s1").is_some(), age("s2").is_some()), (false, true));
}

/// One that dies there is silent only later; nobody has to wait for that.
#[tokio::test]
async fn a_server_does_not_serve_from_the_step_on_that_takes_it_out() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let mut view = view(&lab);
    let state = Arc::make_mut(&mut view.state);
    let here = state.apps.get_mut(&web()).unwrap().servers.get_mut("s2").unwrap();
    let fence = Fence { incarnation: Incarnation(1), generation: Generation(1) };
    (here.found, here.in_service) = (true, true);
    here.activation = Some(Activation {
        fence,
        release: None,
        before: None,
        purpose: Purpose::Wave,
        costs: true,
        void: false,
        granted: ClockMs(0),
        stage: ActivationStage::Granted,
    });
    for (step, serves) in [
        (Step::Prepare, true),
        (Step::Drain, false),
        (Step::HandOver, false),
        (Step::Stop, false),
        (Step::Switch, false),
    ] {
        let doing = [(web(), Doing::Step { step })].into();
        shared.contacts.heard(&"s2".parse().unwrap(), 0, doing);
        let status = group_status(&shared, &view, true);
        let here = &status.apps[&web()].servers["s2"];
        assert_eq!(here.in_service, serves, "{step:?}");
        assert_eq!(here.unfit == Some(Unfit::Changing), !serves, "{step:?}");
        assert!(status.out.contains("s2"), "it was granted");
    }
    let state = Arc::make_mut(&mut view.state);
    let here = state.apps.get_mut(&web()).unwrap().servers.get_mut("s2").unwrap();
    here.activation = None;
    let status = group_status(&shared, &view, true);
    assert!(status.apps[&web()].servers["s2"].in_service, "its last word is from before that");
}
