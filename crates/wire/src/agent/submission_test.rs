use std::time::Duration;

use cohort_core::Body;
use cohort_core::ids::{BootEpoch, RequestId};
use cohort_core::orders::Fence;
use cohort_core::report::Outcome;
use cohort_identity::Authority;

use super::*;

struct Lab {
    _folder: tempfile::TempDir,
    authority: Authority,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("ca"), UnixTime::now()).unwrap();
        Lab { _folder: folder, authority }
    }

    fn identity(&self, role: Role, name: &str) -> Identity {
        let peer = Peer::new(role, name).unwrap();
        let day = Duration::from_secs(86_400);
        self.authority.make_identity(&peer, day, UnixTime::now()).unwrap()
    }
}

fn group() -> GroupId {
    "intel.zone-a".parse().unwrap()
}

fn report(of: &str) -> Submission {
    let report = Report {
        server: of.parse().unwrap(),
        boot_epoch: BootEpoch(1),
        sequence: 1,
        app: "web".parse().unwrap(),
        fence: Fence::default(),
        attempt: 1,
        outcome: Outcome::InService,
    };
    Submission::Report { life: 7, incarnation: Incarnation(1), report }
}

fn pause() -> Submission {
    let body = Body::Pause { app: "web".parse().unwrap(), reason: String::new(), for_ms: None };
    Submission::Command(CommandRequest { request: RequestId("r".to_owned()), body })
}

fn join() -> Submission {
    Submission::Join(JoinGroupRequest { life: 1, address: "a:1".to_owned(), rack: None })
}

/// The status of the answer at a time this far from now, in seconds.
fn verified(lab: &Lab, signed: &SignedSubmission, away_s: u64) -> Result<Peer, u16> {
    let identity = lab.identity(Role::Agent, "leader");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + away_s));
    let verified = signed.verify(identity.roots(), &group(), now);
    verified.map(|(by, _)| by).map_err(|error| error.status)
}

#[test]
fn a_servers_certificate_speaks_for_that_server_and_an_operators_for_that_operator() {
    let lab = Lab::new();
    let (s1, ana) = (lab.identity(Role::Agent, "s1"), lab.identity(Role::Operator, "ana"));
    let verify = |by: &Identity, what: Submission| {
        verified(&lab, &SignedSubmission::sign(by, &group(), what).unwrap(), 0)
    };
    assert_eq!(verify(&s1, report("s1")), Ok(s1.peer().clone()));
    assert_eq!(verify(&s1, join()), Ok(s1.peer().clone()));
    assert_eq!(verify(&ana, pause()), Ok(ana.peer().clone()));
    assert_eq!(verify(&s1, report("s2")), Err(403), "of another server");
    assert_eq!(verify(&s1, pause()), Err(403), "a server is no person");
    assert_eq!(verify(&ana, report("ana")), Err(403), "a person is no server");
    let stranger = Lab::new();
    let forged = stranger.identity(Role::Operator, "ana");
    assert_eq!(verify(&forged, pause()), Err(403), "of another authority");
}

#[test]
fn a_submission_cannot_be_changed_moved_or_kept_for_later() {
    let lab = Lab::new();
    let (s1, ana) = (lab.identity(Role::Agent, "s1"), lab.identity(Role::Operator, "ana"));
    let signed = SignedSubmission::sign(&ana, &group(), pause()).unwrap();
    let hour = SUBMISSION_AGE_S_MAX;
    assert_eq!(verified(&lab, &signed, hour - 60), Ok(ana.peer().clone()));
    assert_eq!(verified(&lab, &signed, hour + 60), Err(403), "kept back");
    let mut changed = signed.clone();
    *changed.0.body.last_mut().unwrap() ^= 1;
    assert_eq!(verified(&lab, &changed, 0), Err(403));
    let mut stolen = SignedSubmission::sign(&s1, &group(), report("s1")).unwrap();
    assert_eq!(verified(&lab, &stolen, hour + 60), Ok(s1.peer().clone()), "the sequence decides");
    stolen.0.chain.clone_from(&signed.0.chain);
    assert_eq!(verified(&lab, &stolen, 0), Err(403), "another's certificate");
    let elsewhere = "intel.zone-b".parse().unwrap();
    let elsewhere = SignedSubmission::sign(&ana, &elsewhere, pause()).unwrap();
    assert_eq!(verified(&lab, &elsewhere, 0), Err(409), "for another group");
}
