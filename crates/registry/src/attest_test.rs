use std::time::Duration;

use cohort_core::ids::GroupId;
use cohort_identity::{Authority, Identity, Peer, Role, UnixTime};

use super::{Attestation, is_bound};
use crate::api::{Compare, Op};

fn identity(authority: &Authority, role: Role, name: &str) -> Identity {
    let day = Duration::from_secs(86_400);
    authority.make_identity(&Peer::new(role, name).unwrap(), day, UnixTime::now()).unwrap()
}

#[test]
fn an_attestation_is_of_one_server_for_one_group_and_one_change() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::create(&folder.path().join("ca"), UnixTime::now()).unwrap();
    let group: GroupId = "intel.zone-a".parse().unwrap();
    let changes = [Op::put("/cohort/v1/groups/intel.zone-a/members", "{}")];
    let compare = [Compare::unchanged_since(changes[0].key(), 7)];
    let now = UnixTime::now();
    let member = identity(&authority, Role::Agent, "s2");
    let signed = Attestation::sign(&member, &group, &compare, &changes).unwrap();
    let verify = |signed: &Attestation, group: &str, changes: &[Op]| {
        let roots = member.roots();
        signed.verify(roots, &group.parse().unwrap(), (&compare, changes), now)
    };
    let by = verify(&signed, "intel.zone-a", &changes).unwrap();
    assert_eq!(by.as_str(), "s2");
    let others = [Op::put("/cohort/v1/groups/intel.zone-a/members", "{ }")];
    assert_eq!(verify(&signed, "intel.zone-a", &others).unwrap_err().status, 403);
    assert_eq!(verify(&signed, "intel.zone-b", &changes).unwrap_err().status, 403);
    // Nor for another state of the registry.
    let later = [Compare::unchanged_since(changes[0].key(), 8)];
    let replayed = signed.verify(member.roots(), &group, (&later, &changes), now);
    assert_eq!(replayed.unwrap_err().status, 403);
    assert!(is_bound(&compare, &changes) && !is_bound(&[], &changes));
    let operator = identity(&authority, Role::Operator, "ana");
    let by_person = Attestation::sign(&operator, &group, &compare, &changes).unwrap();
    assert_eq!(verify(&by_person, "intel.zone-a", &changes).unwrap_err().status, 403);
    let mut forged = signed;
    forged.0.chain = identity(&authority, Role::Agent, "s3").chain_pem().to_owned();
    assert_eq!(verify(&forged, "intel.zone-a", &changes).unwrap_err().status, 403);
}
