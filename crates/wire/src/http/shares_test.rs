use super::*;

const S: Duration = Duration::from_secs(1);

fn network(address: &str) -> Network {
    address.parse::<IpAddr>().unwrap().into()
}

fn peer(role: Role, name: &str) -> Peer {
    Peer::new(role, name).unwrap()
}

/// A port with eight connections, four of them for strangers, three for one address, two for one
/// peer.
fn small() -> Shares {
    let limits = ServerLimits {
        connections_max: 8,
        connections_per_peer_max: 2,
        strangers_max: 4,
        strangers_per_address_max: 3,
        connects_per_s_max: 10,
        connects_burst_max: 20,
        ..ServerLimits::default()
    };
    Shares::new(limits, true)
}

fn admit(shares: &mut Shares, from: &str) -> (Id, Option<Id>) {
    shares.admit(network(from), S).unwrap()
}

fn enter(shares: &mut Shares, from: &str, peer: &Peer) -> Id {
    let (id, _) = admit(shares, from);
    shares.certify(id, peer).unwrap();
    shares.set_busy(id, true, S);
    id
}

#[test]
fn a_host_has_all_addresses_of_its_prefix() {
    assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:ffff::9"));
    assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
    assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
}

#[test]
fn an_address_connects_at_a_rate_with_a_burst() {
    let mut shares = small();
    let mut at = |now: Duration| shares.admit(network("10.0.0.1"), now).map(|_| ());
    for _ in 0..20 {
        assert_eq!(at(S), Ok(()));
    }
    assert_eq!(at(S), Err(Refused::Rate));
    // A tenth of a second each, however often it asks meanwhile.
    for ms in 1..100 {
        assert_eq!(at(S + Duration::from_millis(ms)), Err(Refused::Rate));
    }
    assert_eq!(at(S + Duration::from_millis(100)), Ok(()));
    assert_eq!(at(S + Duration::from_millis(100)), Err(Refused::Rate));
    assert!(shares.admit(network("10.0.0.2"), S).is_ok(), "others are not affected");
}

#[test]
fn in_a_full_share_the_oldest_idle_connection_gives_way() {
    let mut shares = small();
    let ids: Vec<Id> = (0..3).map(|_| admit(&mut shares, "10.0.0.1").0).collect();
    shares.set_busy(ids[0], true, S);
    shares.set_busy(ids[1], true, S);
    shares.set_busy(ids[1], false, 2 * S);
    let (fourth, yields) = admit(&mut shares, "10.0.0.1");
    assert_eq!(yields, Some(ids[2]), "it has been idle since before");
    assert_eq!(admit(&mut shares, "10.0.0.1").1, Some(fourth));
    for id in shares.places.keys().copied().collect::<Vec<_>>() {
        shares.set_busy(id, true, S);
    }
    assert_eq!(shares.admit(network("10.0.0.1"), S), Err(Refused::Share));
}

#[test]
fn on_a_full_port_the_largest_share_gives_way() {
    let mut shares = small();
    let lonely = admit(&mut shares, "10.0.0.9").0;
    let flood: Vec<Id> = (0..3).map(|_| admit(&mut shares, "10.0.0.1").0).collect();
    assert_eq!(admit(&mut shares, "10.0.0.2").1, Some(flood[0]));
    assert_eq!(admit(&mut shares, "10.0.0.3").1, Some(flood[1]));
    assert!(shares.places.contains_key(&lonely), "the oldest of all, but alone");
}

#[test]
fn strangers_take_nothing_from_peers() {
    let mut shares = small();
    let [one, two] = ["web-1", "web-2"].map(|name| peer(Role::Agent, name));
    for peer in [&one, &one, &two] {
        let id = enter(&mut shares, "10.0.0.1", peer);
        shares.set_busy(id, false, S);
    }
    // However many, from however many addresses.
    for host in 0..100 {
        for _ in 0..5 {
            let _ = shares.admit(network(&format!("10.0.1.{host}")), S);
        }
    }
    let peers = shares.places.values().filter(|place| matches!(place.holder, Holder::Peer(_)));
    assert_eq!((peers.count(), shares.strangers), (3, 4));
    enter(&mut shares, "10.0.0.1", &two);
    assert_eq!(shares.places.len(), 7, "the handshake took one of the strangers' places");
}

#[test]
fn a_peer_has_a_share_and_operators_a_reserve() {
    let mut shares = small();
    let one = peer(Role::Agent, "web-1");
    let first = enter(&mut shares, "10.0.0.1", &one);
    enter(&mut shares, "10.0.0.1", &one);
    let (third, _) = admit(&mut shares, "10.0.0.1");
    assert_eq!(shares.certify(third, &one), Err(Refused::Share));
    shares.set_busy(first, false, S);
    assert_eq!(shares.certify(third, &one), Ok(Some(first)));
    shares.set_busy(third, true, S);
    for name in ["web-2", "web-3"] {
        enter(&mut shares, "10.0.0.2", &peer(Role::Agent, name));
    }
    let (late, _) = admit(&mut shares, "10.0.0.3");
    assert_eq!(shares.certify(late, &peer(Role::Viewer, "vera")), Err(Refused::Full));
    assert_eq!(shares.certify(late, &peer(Role::Operator, "ada")), Ok(None));
}

#[test]
fn a_port_leaves_file_descriptors_to_the_others_of_its_process() {
    let few = ServerLimits::default().within_files(1024);
    assert_eq!((few.connections_max, few.strangers_max), (512, 256));
    let many = ServerLimits::default().within_files(1 << 20);
    let ServerLimits { connections_max, strangers_max, .. } = ServerLimits::default();
    assert_eq!((many.connections_max, many.strangers_max), (connections_max, strangers_max));
}

#[test]
fn networks_beyond_memory_are_forgotten_but_not_who_floods() {
    let mut shares = small();
    let flood = network("192.0.2.1");
    while shares.admit(flood, S) != Err(Refused::Rate) {}
    for host in 0..NETWORKS_MAX as u32 + 100 {
        let _ = shares.admit(IpAddr::from(std::net::Ipv4Addr::from(host)).into(), S);
    }
    assert!(shares.rates.len() <= NETWORKS_MAX);
    assert_eq!(shares.admit(flood, S), Err(Refused::Rate));
    assert_eq!((shares.strangers, shares.places.len()), (4, 4));
}
