//! Properties that hold for any commands in any order.

mod common;

use std::collections::BTreeSet;

use cohort_core::State;
use cohort_core::command::{Body, Command};
use cohort_core::gate::RegistryView;
use cohort_core::ids::{Incarnation, ServerId};
use cohort_core::phase::{Phase, WaveStep};
use cohort_core::plan::{Observations, Offer, plan};
use cohort_core::policy::{Check, Duration, Policy, Prestage, Size, WaveSizes};
use common::{Wish, app, command, group, policy, release, server, wish};
use proptest::prelude::*;

fn played(wishes: &[Wish]) -> (State, Vec<Command>) {
    let mut state = group();
    let mut log = Vec::new();
    for wish in wishes {
        let command = command(wish.request, wish.body(&state));
        let _ = state.apply(&command);
        log.push(command);
    }
    (state, log)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn no_command_breaks_an_invariant(wishes in prop::collection::vec(wish(), 1..200)) {
        let mut state = group();
        for wish in &wishes {
            let command = command(wish.request, wish.body(&state));
            let _ = state.apply(&command);
            prop_assert_eq!(state.check(), Ok(()), "after {:?}", command);
        }
    }

    #[test]
    fn a_rejected_command_changes_only_the_memory_of_its_request(
        wishes in prop::collection::vec(wish(), 1..120),
    ) {
        let mut state = group();
        for wish in &wishes {
            let command = command(wish.request, wish.body(&state));
            let mut before = state.clone();
            if state.apply(&command).is_err() {
                before.requests.clone_from(&state.requests);
                prop_assert_eq!(&before, &state, "refused: {:?}", command);
            }
        }
    }

    #[test]
    fn the_same_log_leads_to_the_same_state(wishes in prop::collection::vec(wish(), 1..120)) {
        let (state, log) = played(&wishes);
        let mut again = group();
        for command in &log {
            let _ = again.apply(command);
        }
        prop_assert_eq!(state, again);
    }

    #[test]
    fn state_and_commands_survive_their_encoding(wishes in prop::collection::vec(wish(), 1..120)) {
        let (state, log) = played(&wishes);
        let text = serde_json::to_string(&state).expect("plain data");
        prop_assert_eq!(&serde_json::from_str::<State>(&text).expect("the same schema"), &state);
        for command in log {
            let text = serde_json::to_string(&command).expect("plain data");
            prop_assert_eq!(serde_json::from_str::<Command>(&text).expect("the same"), command);
        }
    }

    #[test]
    fn a_repeated_request_is_applied_once(wishes in prop::collection::vec(wish(), 1..60)) {
        let (mut state, _) = played(&wishes);
        let wish = Body::Pause { app: app(), reason: "twice".into(), for_ms: None };
        let twice = command(Some(250), wish);
        let first = state.apply(&twice);
        let before = state.clone();
        prop_assert_eq!(state.apply(&twice).err(), first.err());
        prop_assert_eq!(before, state);
    }

    #[test]
    fn another_incarnation_is_rejected(wishes in prop::collection::vec(wish(), 1..20)) {
        let (mut state, log) = played(&wishes);
        let before = state.clone();
        for mut command in log {
            command.incarnation = Incarnation(2);
            prop_assert!(state.apply(&command).is_err());
        }
        prop_assert_eq!(before, state);
    }

    #[test]
    fn every_plan_is_accepted_or_says_what_it_waits_for(
        wishes in prop::collection::vec(wish(), 1..120), elapsed_ms in 0u64..20_000,
    ) {
        let (mut state, _) = played(&wishes);
        if state.servers.is_empty() {
            return Ok(());
        }
        let policies = state.apps.iter().map(|(id, app)| {
            (id.clone(), (app.revision, (*app.policy).clone()))
        });
        let view = RegistryView { policies: policies.collect(), ..RegistryView::default() };
        let seen = Observations {
            leader: state.servers.keys().next().cloned(),
            elapsed_ms,
            leading_for_ms: 1_000,
            registry: Some(view),
            offers: [(app(), Offer::Release(release(9)))].into(),
            ..Observations::default()
        };
        let plan = plan(&state, &seen);
        prop_assert!(!plan.commands.is_empty() || !plan.waiting.is_empty());
        for body in plan.commands {
            let command = command(None, body);
            prop_assert!(state.apply(&command).is_ok(), "planned and refused: {:?}", command);
            prop_assert_eq!(state.check(), Ok(()));
        }
    }

    #[test]
    fn orders_name_only_what_is_known(wishes in prop::collection::vec(wish(), 1..120)) {
        let (state, _) = played(&wishes);
        for n in 0..5 {
            let Some(orders) = state.orders(&server(n), false) else { continue };
            for app in &orders.apps {
                let here = &state.apps[&app.app].servers[&server(n)];
                if let Some(order) = &app.activation {
                    prop_assert_eq!(order.fence.generation, here.activated);
                    let artifact = order.release.as_ref().map(|release| &release.artifact);
                    prop_assert!(artifact.is_none_or(|artifact| app.keep.contains(artifact)));
                }
                if let Some(good) = &state.apps[&app.app].last_good {
                    prop_assert!(app.keep.contains(&good.artifact), "last good is never removed");
                }
                let before = here.activation.as_ref().and_then(|a| a.before.as_ref());
                for release in here.running.iter().chain(before) {
                    prop_assert!(app.keep.contains(&release.artifact), "what runs stays");
                }
                for fetch in &app.fetch {
                    prop_assert!(app.keep.contains(&fetch.release.artifact), "what comes stays");
                }
            }
        }
    }

    #[test]
    fn prestage_delays_downloads_but_never_those_of_the_current_wave(
        wishes in prop::collection::vec(wish(), 1..120),
    ) {
        let (state, _) = played(&wishes);
        let rollout = state.apps.get(&app()).and_then(|app| app.phase.forward());
        let Some(coming) = rollout.map(|rollout| rollout.release.clone()) else { return Ok(()) };
        let with = |prestage| {
            let mut state = state.clone();
            let app = state.apps.get_mut(&app()).expect("known");
            if let Phase::Forward { rollout, .. } = &mut app.phase {
                rollout.policy.update.prestage = prestage;
            }
            state
        };
        let fetchers = |state: &State, killed| -> BTreeSet<ServerId> {
            let fetches = |server: &ServerId| {
                let orders = state.orders(server, killed).expect("known");
                let of_app = orders.apps.iter().find(|orders| orders.app == app());
                of_app.is_some_and(|orders| orders.fetch.iter().any(|f| f.release == coming))
            };
            state.servers.keys().filter(|server| fetches(server)).cloned().collect()
        };
        let all = fetchers(&with(Prestage::All), false);
        let next = fetchers(&with(Prestage::NextWave), false);
        let wave = fetchers(&with(Prestage::Wave), false);
        prop_assert!(wave.is_subset(&next) && next.is_subset(&all), "{wave:?} {next:?} {all:?}");
        let app = &state.apps[&app()];
        if let Some((servers, step)) = app.phase.wave() {
            let due = servers.iter().filter(|server| all.contains(*server));
            let baked = step == WaveStep::Baked;
            prop_assert!(baked || due.into_iter().all(|server| wave.contains(server)));
        }
        // Under the kill switch, only what was already granted may be fetched again.
        for server in fetchers(&with(Prestage::All), true) {
            let here = &app.servers[&server];
            let wanted = here.activation.as_ref().and_then(|a| a.release.as_ref());
            prop_assert!(wanted == Some(&coming) || app.last_good.as_ref() == Some(&coming));
        }
    }

    #[test]
    fn shares_round_up_for_waves_and_down_for_budgets(share in 1u8..=100, servers in 0u32..2_000) {
        let size = Size::Percent(share);
        let exact = f64::from(servers) * f64::from(share) / 100.0;
        let up = size.of_rounded_up(servers);
        let down = size.of_rounded_down(servers);
        prop_assert!(up >= 1 && f64::from(up) + 1e-6 >= exact);
        prop_assert!(f64::from(up) < exact.max(0.5) + 1.0);
        prop_assert!(f64::from(down) <= exact + 1e-6 && f64::from(down) + 1.0 > exact);
        let mut policy = policy(1, 0);
        policy.update.max_unavailable = size;
        policy.update.surroundings_allowed = size;
        prop_assert!(policy.max_unavailable_of(servers) >= 1);
        prop_assert!(policy.surroundings_allowed_of(servers) >= 1);
    }

    #[test]
    fn waves_of_a_list_repeat_the_last(
        sizes in prop::collection::vec(1u32..9, 1..6),
        n in 1u32..20,
    ) {
        let waves = WaveSizes(sizes.iter().map(|size| Size::Count(*size)).collect());
        let index = (n as usize - 1).min(sizes.len() - 1);
        prop_assert_eq!(waves.of_wave(n, 100), sizes[index]);
    }

    #[test]
    fn durations_survive_their_text(ms in 0u64..=cohort_core::policy::DURATION_MS_MAX) {
        let duration = Duration::from_ms(ms);
        prop_assert_eq!(Duration::try_from(duration.to_string()), Ok(duration));
    }

    #[test]
    fn no_text_panics_a_parser(text in ".{0,40}") {
        let _ = Duration::try_from(text.clone());
        let json = serde_json::Value::String(text);
        let _ = serde_json::from_value::<Size>(json.clone());
        let _ = serde_json::from_value::<WaveSizes>(json.clone());
        let _ = serde_json::from_value::<Policy>(json);
    }
}

#[test]
fn durations_and_sizes_refuse_what_they_cannot_mean() {
    for text in ["", "5", "s", "-1s", "1.5s", "31d", "99999999999999999999s", "1 s", "1S"] {
        assert!(Duration::try_from(text.to_owned()).is_err(), "{text}");
    }
    for text in ["101%", "%", "-1", "ten", "1.5%", ""] {
        assert!(serde_json::from_value::<Size>(text.into()).is_err(), "{text}");
    }
    assert!(serde_json::from_value::<WaveSizes>(serde_json::json!([])).is_err());
}

#[test]
fn unknown_keys_of_a_policy_are_refused_by_name() {
    let text = r#"{"app": "web", "channel": "stable", "update": {"max_paralel": 3}}"#;
    let error = serde_json::from_str::<Policy>(text).expect_err("unknown key").to_string();
    assert!(error.contains("max_paralel"), "{error}");
    let text = r#"{"app": "web", "channel": "stable", "check": [{"type": "tcp", "prot": 1}]}"#;
    let error = serde_json::from_str::<Policy>(text).expect_err("unknown key").to_string();
    assert!(error.contains("prot"), "{error}");
}

#[test]
fn checks_survive_their_encoding_and_are_written_flat() {
    let text = r#"{"type": "http", "path": "/", "expect_status": 204, "timeout": "3s"}"#;
    let check: Check = serde_json::from_str(text).expect("a check");
    assert_eq!((check.timeout, check.interval), (Duration::from_secs(3), Duration::from_secs(2)));
    let again = serde_json::to_value(&check).expect("plain data");
    assert_eq!(again["expect_status"], 204);
    assert_eq!(serde_json::from_value::<Check>(again).expect("the same"), check);
    for text in [r#"{"type": "http"}"#, r#"{"type": "exec", "name": "x", "path": "/y"}"#] {
        assert!(serde_json::from_str::<Check>(text).is_err(), "{text}");
    }
}

/// A policy is all that the hub could forge: what a server runs and reaches is not in it.
#[test]
fn a_policy_names_no_program_no_arguments_and_no_host() {
    for text in [
        r#"{"type": "exec", "name": "bin/sh"}"#,
        r#"{"type": "exec", "name": "/bin/sh"}"#,
        r#"{"type": "exec", "name": "../x"}"#,
        r#"{"type": "exec", "name": "host:/bin/sh"}"#,
        r#"{"type": "exec", "name": "smoke", "args": ["-c", "id"]}"#,
        r#"{"type": "exec", "command": "bin/sh"}"#,
        r#"{"type": "tcp", "address": "10.0.0.1:22"}"#,
        r#"{"type": "http", "url": "http://169.254.169.254/"}"#,
        r#"{"type": "http", "path": "/", "host": "10.0.0.1"}"#,
    ] {
        assert!(serde_json::from_str::<Check>(text).is_err(), "{text}");
    }
    let policy = |path: &str| {
        let check = serde_json::json!({ "type": "http", "path": path });
        let policy = serde_json::json!({ "app": "web", "channel": "stable", "check": [check] });
        serde_json::from_value::<Policy>(policy).expect("a policy").validate()
    };
    assert_eq!(policy("/healthz?full=1"), Ok(()));
    for path in ["", "healthz", "@10.0.0.1/", "/a b", "/a\r\nX: y", "/#", "http://10.0.0.1/"] {
        assert!(policy(path).is_err(), "{path}");
    }
    assert!(policy(&format!("/{}", "a".repeat(1024))).is_err());
}

#[test]
fn a_state_with_another_schema_is_refused() {
    let mut value = serde_json::to_value(group()).expect("plain data");
    value["schema"] = 99.into();
    let error = serde_json::from_value::<State>(value).expect_err("another schema").to_string();
    assert!(error.contains("schema 99"), "{error}");
}

#[test]
fn an_unknown_command_is_not_read() {
    let text = r#"{"version": 1, "incarnation": 1, "actor": "ana", "body": {"command": "fly"}}"#;
    assert!(serde_json::from_str::<Command>(text).is_err());
}
