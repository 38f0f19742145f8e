use std::collections::BTreeSet;

use cohort_core::ids::{Incarnation, MemberId};
use cohort_core::orders::{MemberAddress, Orders};

use super::{
    Asking, Effect, HELD_BY_ONE_MAX, Input, Members, ORDERS_VALID_MS, Question, Received, Whom,
};
use crate::answers::hash_of;
use crate::copies::RETURNS_MS;

fn member(server: &str) -> MemberAddress {
    let address = format!("{server}:7417");
    MemberAddress { server: server.parse().unwrap(), address, member: MemberId(1) }
}

fn whom(server: &str) -> Whom {
    Whom { server: server.parse().unwrap(), address: format!("{server}:7417") }
}

fn orders(incarnation: u64) -> Orders {
    Orders {
        group: "intel.zone-a".parse().unwrap(),
        incarnation: Incarnation(incarnation),
        server: "s9".parse().unwrap(),
        apps: Vec::new(),
        member: None,
        members: Vec::new(),
        heard: cohort_core::ids::BootEpoch(0),
    }
}

fn answer(incarnation: u64) -> Input {
    says(orders(incarnation))
}

fn says(orders: Orders) -> Input {
    let orders = Some(Box::new(orders));
    Input::Orders {
        orders,
        elsewhere: None,
        valid_ms: ORDERS_VALID_MS,
        leader: None,
        voters: BTreeSet::new(),
    }
}

fn no_orders(elsewhere: Option<&str>) -> Input {
    let (elsewhere, leader) = (elsewhere.map(Into::into), None);
    Input::Orders {
        orders: None,
        elsewhere,
        valid_ms: ORDERS_VALID_MS,
        leader,
        voters: BTreeSet::new(),
    }
}

/// An agent of `s9` that knows the members `s1` and `s2`.
struct World {
    asking: Asking,
    known: Vec<MemberAddress>,
    voters: BTreeSet<cohort_core::ids::ServerId>,
    now_ms: u64,
}

impl World {
    fn new(incarnation: u64) -> World {
        let asking = Asking::new("s9".parse().unwrap(), Incarnation(incarnation));
        World {
            asking,
            known: vec![member("s1"), member("s2")],
            voters: BTreeSet::new(),
            now_ms: 0,
        }
    }

    /// The same of a group that has one member.
    fn of_one(incarnation: u64) -> World {
        let mut world = World::new(incarnation);
        world.known.truncate(1);
        world
    }

    /// Two members answer the same. Returns the second, and what follows.
    fn agreed(&mut self, input: &Input) -> (Whom, Vec<Effect>) {
        let effects = self.step(input.clone());
        let [Effect::Ask(second, Question::Orders)] = effects.as_slice() else {
            panic!("{effects:?}")
        };
        (second.clone(), self.step(input.clone()))
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        self.now_ms += 10;
        self.asking.step(
            self.now_ms,
            Members { known: &self.known, voters: &self.voters, own: None },
            input,
        )
    }

    /// The members it asks first, while none responds.
    fn first(&mut self) -> Whom {
        match self.step(Input::Woken).as_slice() {
            [Effect::Ask(whom, Question::Orders)] => whom.clone(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn no_member_makes_orders_valid_for_longer_than_every_server_allows() {
    for (said_ms, valid_ms) in [(700, 700), (u64::MAX, ORDERS_VALID_MS)] {
        let mut world = World::of_one(1);
        world.first();
        let orders = Some(Box::new(orders(1)));
        let answer = Input::Orders {
            orders,
            elsewhere: None,
            valid_ms: said_ms,
            leader: None,
            voters: BTreeSet::new(),
        };
        let effects = world.step(answer);
        let Some(Effect::Obey(received)) = effects.first() else { panic!("{effects:?}") };
        assert_eq!(received.valid_ms, valid_ms);
        assert!(!received.fresh(received.asked_ms + valid_ms));
    }
}

#[test]
fn an_answer_is_obeyed_introduces_the_server_once_and_is_followed_by_a_held_question() {
    let mut world = World::of_one(1);
    let asked = world.first();
    let effects = world.step(answer(1));
    let received = Received {
        orders: orders(1),
        asked_ms: 10,
        valid_ms: ORDERS_VALID_MS,
        leader: None,
        voters: BTreeSet::new(),
    };
    assert_eq!(
        effects,
        [Effect::Obey(Box::new(received)), Effect::Ask(asked.clone(), Question::Join)]
    );
    let held = |incarnation| {
        let known = hash_of(Some(&orders(incarnation)));
        Effect::Ask(asked.clone(), Question::Change { known })
    };
    assert_eq!(world.step(Input::Joined(true)), [held(1)]);
    assert_eq!(world.step(Input::Changed), [Effect::Ask(asked.clone(), Question::Orders)]);
    assert_eq!(world.step(answer(2))[1], held(2), "not introduced again");
}

#[test]
fn one_member_gives_no_orders_to_others_until_a_second_one_says_the_same() {
    let mut world = World::new(1);
    world.known.push(member("s3"));
    let hostile = world.first();
    let lie = Orders { heard: cohort_core::ids::BootEpoch(9), ..orders(7) };
    let mut asked = vec![hostile.clone()];
    for said in [lie.clone(), orders(1)] {
        let effects = world.step(says(said));
        let [Effect::Ask(next, Question::Orders)] = effects.as_slice() else {
            panic!("{effects:?}")
        };
        asked.push(next.clone());
    }
    asked.sort_by(|one, other| one.server.cmp(&other.server));
    assert_eq!(asked, ["s1", "s2", "s3"].map(whom));
    let second_ms = world.now_ms - 10;
    let Effect::Obey(received) = &world.step(answer(1))[0] else { panic!("not obeyed") };
    assert_eq!(received.orders, orders(1), "the incarnation of the lie counts for nothing");
    assert_eq!(received.asked_ms, second_ms, "valid from the earlier request");
    // However often it is repeated.
    let _ = world.step(Input::Joined(true));
    for _ in 0..20 {
        let mut effects = world.step(Input::Changed);
        for _ in 0..6 {
            assert!(!effects.iter().any(|effect| matches!(effect,
                Effect::Obey(received) if received.orders == lie)));
            let input = match effects.last() {
                Some(Effect::Ask(whom, Question::Orders)) if *whom == hostile => says(lie.clone()),
                Some(Effect::Ask(_, Question::Orders)) => answer(1),
                Some(Effect::AskRegistry { .. }) => Input::RegistryAsked,
                _ => Input::Changed,
            };
            effects = world.step(input);
        }
    }
}

/// One that says that the group does not have this server, and takes it in for show.
#[test]
fn no_member_captures_a_server_by_giving_no_orders() {
    for joined in [true, false] {
        let mut world = World::new(1);
        world.known.push(member("s3"));
        let hostile = world.first();
        let mut effects = world.step(no_orders(None));
        let mut times = 0;
        let obeyed = (0..20).any(|_| {
            let input = match effects.last() {
                Some(Effect::Ask(whom, question)) if *whom == hostile => {
                    times += 1;
                    match question {
                        Question::Join => Input::Joined(joined),
                        _ => no_orders(None),
                    }
                }
                Some(Effect::Ask(_, Question::Join)) => Input::Joined(true),
                Some(Effect::Ask(_, Question::Orders)) => answer(1),
                Some(Effect::AskRegistry { .. }) => Input::RegistryAsked,
                _ => Input::Woken,
            };
            effects = world.step(input);
            matches!(effects[0], Effect::Obey(_))
        });
        assert!(obeyed && times <= 2, "{times}");
    }
}

/// Another member may be lost, and the group still decides.
#[test]
fn the_word_of_the_only_voter_is_enough_and_of_no_other_member() {
    let mut world = World::new(1);
    let first = world.first();
    world.voters = BTreeSet::from(["s7".parse().unwrap()]);
    assert!(!matches!(world.step(answer(1))[0], Effect::Obey(_)));
    world.voters = BTreeSet::from([first.server]);
    let mut input = Input::NoAnswer;
    for _ in 0..6 {
        let effects = world.step(input);
        if matches!(effects[0], Effect::Obey(_)) {
            return;
        }
        input = match effects.last() {
            Some(Effect::Ask(whom, Question::Orders)) if world.voters.contains(&whom.server) => {
                answer(1)
            }
            Some(Effect::Ask(_, Question::Orders)) => Input::NoAnswer,
            Some(Effect::AskRegistry { .. }) => Input::RegistryAsked,
            _ => Input::Changed,
        };
    }
    panic!("not obeyed");
}

/// A member that repeats old orders as present ones must not keep a server for good.
#[test]
fn no_member_keeps_a_server_to_itself() {
    let mut world = World::new(1);
    world.first();
    let _ = world.agreed(&answer(1));
    let mut effects = world.step(Input::Joined(true));
    let mut holders = BTreeSet::new();
    for _ in 0..HELD_BY_ONE_MAX {
        let Some(Effect::Ask(holder, Question::Change { .. })) = effects.last() else {
            panic!("{effects:?}")
        };
        holders.insert(holder.server.clone());
        let asks = world.step(Input::Changed);
        assert_eq!(asks, [Effect::Ask(holder.clone(), Question::Orders)]);
        effects = world.step(answer(1));
        assert!(matches!(effects[0], Effect::Obey(_)), "one is enough for what is in force");
    }
    assert_eq!(holders.len(), 2);
}

#[test]
fn orders_age_from_the_question_not_from_the_answer() {
    let received = Received {
        orders: orders(1),
        asked_ms: 1_000,
        valid_ms: ORDERS_VALID_MS,
        leader: None,
        voters: BTreeSet::new(),
    };
    assert!(received.fresh(1_000 + ORDERS_VALID_MS - 1));
    assert!(!received.fresh(1_000 + ORDERS_VALID_MS));
}

#[test]
fn after_one_member_the_next_is_asked_and_after_all_it_rests_longer_each_time() {
    let mut world = World::new(1);
    let mut rests = Vec::new();
    let mut first = world.first();
    for round in 0..6 {
        // The kill switch spreads through a minority.
        assert_eq!(world.step(Input::NoAnswer), [Effect::Ask(first.clone(), Question::Kill)]);
        let effects = world.step(Input::Changed);
        let [Effect::Ask(second, Question::Orders)] = effects.as_slice() else {
            panic!("{effects:?}")
        };
        assert_ne!(*second, first);
        assert_eq!(world.step(Input::NoAnswer), [Effect::Ask(second.clone(), Question::Kill)]);
        // The first time, where it says that the members are may be news.
        let ask = Effect::AskRegistry { tell: round > 0 };
        assert_eq!(world.step(Input::Changed), [ask]);
        let effects = world.step(Input::RegistryAsked);
        let [Effect::Rest { until_ms }] = effects.as_slice() else { panic!("{effects:?}") };
        rests.push(until_ms - world.now_ms);
        first = world.first();
    }
    assert_eq!(rests, [100, 200, 400, 800, 1_000, 1_000]);
}

#[test]
fn after_a_held_question_without_an_answer_another_member_is_asked() {
    let mut world = World::new(1);
    world.first();
    let (asked, _) = world.agreed(&answer(1));
    let _ = world.step(Input::Joined(true));
    let effects = world.step(Input::NoAnswer);
    let [Effect::Ask(next, Question::Orders)] = &effects[..] else { panic!("{effects:?}") };
    assert_ne!(*next, asked, "it may be gone");
}

/// The one that answered last comes first; none is asked twice before all were.
#[test]
fn every_member_is_asked_once_in_a_round() {
    let mut world = World::new(1);
    world.known = ["s1", "s2", "s3", "s4"].map(member).to_vec();
    for incarnation in 1..=4 {
        let mut whom = world.first();
        let mut asked = vec![whom.clone()];
        loop {
            let _ = world.step(Input::NoAnswer);
            match &world.step(Input::Changed)[..] {
                [Effect::Ask(next, Question::Orders)] => whom = next.clone(),
                [Effect::AskRegistry { .. }] => break,
                other => panic!("{other:?}"),
            }
            asked.push(whom.clone());
        }
        asked.sort_by(|one, other| one.server.cmp(&other.server));
        assert_eq!(asked, ["s1", "s2", "s3", "s4"].map(self::whom));
        // Next time another one answers first.
        let _ = world.step(Input::RegistryAsked);
        let _ = world.first();
        let _ = world.step(Input::NoAnswer);
        let _ = world.step(Input::Changed);
        let (_, effects) = world.agreed(&answer(incarnation));
        if matches!(effects.last(), Some(Effect::Ask(_, Question::Join))) {
            let _ = world.step(Input::Joined(true));
        }
    }
}

#[test]
fn orders_age_from_their_own_question_not_from_the_one_for_the_kill_registers() {
    let mut world = World::of_one(1);
    let _ = world.first();
    let _ = world.step(Input::NoAnswer);
    world.now_ms += 1_000;
    let _ = world.step(Input::Changed);
    let _ = world.step(Input::RegistryAsked);
    let _ = world.first();
    let asked_ms = world.now_ms;
    let effects = world.step(answer(1));
    let Effect::Obey(received) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!(received.asked_ms, asked_ms);
}

#[test]
fn an_old_incarnation_is_never_obeyed() {
    let mut world = World::of_one(2);
    let asked = world.first();
    let effects = world.step(answer(1));
    let old = Effect::OldIncarnation { server: asked.server, incarnation: Incarnation(1) };
    assert_eq!(effects, [old, Effect::AskRegistry { tell: false }]);
    assert!(matches!(world.step(Input::RegistryAsked).as_slice(), [Effect::Rest { .. }]));
    // A newer one is accepted, and from then on the previous one is old.
    let _ = world.first();
    assert!(matches!(world.step(answer(3))[0], Effect::Obey(_)));
    let _ = world.step(Input::Joined(true));
    let _ = world.step(Input::Changed);
    assert!(matches!(world.step(answer(2))[0], Effect::OldIncarnation { .. }));
}

#[test]
fn a_server_that_the_group_does_not_have_asks_to_be_taken_in() {
    let mut world = World::new(1);
    let asked = world.first();
    let none = no_orders(None);
    assert_eq!(world.step(none.clone()), [Effect::Ask(asked.clone(), Question::Join)]);
    assert!(matches!(world.step(Input::Joined(false)).as_slice(), [Effect::Rest { .. }]));
    let other = world.first();
    assert_ne!(other, asked, "perhaps that one knows better");
    assert_eq!(world.step(none), [Effect::Ask(other, Question::Join)]);
    assert_eq!(world.step(Input::Joined(true)), [Effect::Ask(asked, Question::Orders)]);
    let mut alone = World::of_one(1);
    let only = alone.first();
    let _ = alone.step(no_orders(None));
    assert_eq!(alone.step(Input::Joined(true)), [Effect::Ask(only, Question::Orders)]);
}

/// At its start it introduces itself, whoever spoke for the server before; from then on nobody else
/// may.
#[test]
fn an_agent_that_the_group_took_in_notices_that_another_one_speaks_for_its_server() {
    let mut world = World::new(1);
    world.known.push(member("s3"));
    let other = || no_orders(Some("10.0.0.8"));
    let mut asked = vec![world.first()];
    // At its start, and a second time: perhaps a request of an earlier process came late.
    for _ in 0..2 {
        let join = Effect::Ask(asked.last().unwrap().clone(), Question::Join);
        assert_eq!(world.step(other()), [join]);
        let effects = world.step(Input::Joined(true));
        let [Effect::Ask(next, Question::Orders)] = effects.as_slice() else {
            panic!("{effects:?}")
        };
        assert!(!asked.contains(next), "no member displaces an agent alone");
        asked.push(next.clone());
    }
    let displaced = Effect::Displaced { host: "10.0.0.8".into() };
    assert_eq!(world.step(other())[0], displaced);
}

#[test]
fn no_member_displaces_an_agent_alone() {
    let mut world = World::new(1);
    let hostile = world.first();
    let mut input = no_orders(Some("10.0.0.8"));
    for _ in 0..60 {
        let effects = world.step(input);
        let displaced = effects.iter().any(|it| matches!(it, Effect::Displaced { .. }));
        assert!(!displaced, "{effects:?}");
        let host = "10.0.0.8".to_owned();
        input = match effects.last() {
            Some(Effect::Ask(whom, Question::Orders)) if *whom == hostile => {
                no_orders(Some("10.0.0.8"))
            }
            Some(Effect::Ask(_, Question::Orders)) => answer(1),
            Some(Effect::Ask(whom, Question::Join)) if *whom == hostile => {
                Input::RunsElsewhere { host }
            }
            Some(Effect::Ask(_, Question::Join)) => Input::Joined(true),
            Some(Effect::AskRegistry { .. }) => Input::RegistryAsked,
            _ => Input::Changed,
        };
    }
}

#[test]
fn what_a_member_said_long_ago_displaces_nobody() {
    for (later_ms, displaces) in [(1_000, true), (200_000, false)] {
        let mut world = World::new(1);
        world.known.push(member("s3"));
        let _ = world.first();
        let other = || no_orders(Some("10.0.0.8"));
        for _ in 0..2 {
            let _ = world.step(other());
            let _ = world.step(Input::Joined(true));
        }
        world.now_ms += later_ms;
        let displaced = matches!(world.step(other())[0], Effect::Displaced { .. });
        assert_eq!(displaced, displaces, "{later_ms}");
    }
}

/// Its member may be one that nobody listens to any more.
#[test]
fn an_agent_that_was_taken_in_and_is_refused_starts_over() {
    let mut world = World::of_one(1);
    let asked = world.first();
    let host = || "10.0.0.8".to_owned();
    let refused = || Input::RunsElsewhere { host: host() };
    let join = Effect::Ask(asked, Question::Join);
    assert_eq!(world.step(no_orders(Some("10.0.0.8"))), std::slice::from_ref(&join));
    let effects = world.step(refused());
    assert!(matches!(effects[..], [Effect::Rest { .. }]), "a copy waits: {effects:?}");
    let _ = world.first();
    let _ = world.step(no_orders(Some("10.0.0.8")));
    let _ = world.step(Input::Joined(true));
    assert_eq!(world.step(no_orders(Some("10.0.0.8"))), [join]);
    assert_eq!(world.step(refused())[0], Effect::Displaced { host: host() });
}

#[test]
fn without_members_the_registry_is_asked_and_its_own_member_is_asked_first() {
    let mut world = World::new(1);
    world.known.clear();
    let ask = Effect::AskRegistry { tell: false };
    assert_eq!(world.step(Input::Woken), std::slice::from_ref(&ask));
    assert!(matches!(world.step(Input::RegistryAsked).as_slice(), [Effect::Rest { .. }]));
    assert_eq!(world.step(Input::Woken), [ask]);
    world.known = vec![member("s1"), member("s2")];
    let own = Members { known: &world.known, voters: &world.voters, own: Some("s9:7417") };
    let effects = world.asking.step(0, own, Input::RegistryAsked);
    assert_eq!(effects, [Effect::Ask(whom("s9"), Question::Orders)]);
}

#[test]
fn a_server_asks_its_own_member_where_it_is_now() {
    let mut asking = Asking::new("s1".parse().unwrap(), Incarnation(1));
    let known = [member("s1")];
    let effects = asking.step(
        10,
        Members { known: &known, voters: &BTreeSet::new(), own: Some("s1.new:7417") },
        Input::Woken,
    );
    let whom = Whom { server: "s1".parse().unwrap(), address: "s1.new:7417".to_owned() };
    assert_eq!(effects, [Effect::Ask(whom, Question::Orders)], "the group has the address before");
}

/// A copy must not divert what is meant for the first machine; but a group may have lost its leader
/// since, and need this server to find itself again.
#[test]
fn a_refused_machine_tells_the_hub_where_it_is_only_after_a_long_silence() {
    let tells = |refused: bool, after_ms: u64| {
        let mut world = World::new(1);
        world.first();
        world.step(no_orders(Some("10.0.0.8")));
        let host = "10.0.0.8".to_owned();
        world.step(if refused { Input::RunsElsewhere { host } } else { Input::NoAnswer });
        world.now_ms += after_ms;
        let steps = (0..30).flat_map(|_| world.step(Input::NoAnswer)).collect::<Vec<_>>();
        steps.contains(&Effect::AskRegistry { tell: true })
    };
    assert!(tells(false, 0), "it was not judged");
    assert!(!tells(true, 0));
    assert!(tells(true, RETURNS_MS));
}
