use cohort_core::policy::Policy;
use cohort_core::release::Rollback;

use super::{ServiceFile, address};
use crate::cgroup::Limits;
use crate::hooks::Hook;
use crate::process::StopSignal;

/// Releases on servers have such files: every key keeps its meaning.
#[test]
fn a_full_file_is_read() {
    let file = ServiceFile::parse(include_str!("../tests/golden/cohort.toml")).unwrap();
    assert_eq!(file.rollback, Some(Rollback::Revert));
    let service = file.service.as_ref().unwrap();
    assert_eq!(service.command, ["./bin/web", "--port", "{port}"]);
    assert_eq!(service.systemd_unit, None);
    assert_eq!(service.env["RUST_LOG"], "info");
    assert_eq!(service.stop_signal, StopSignal::Int);
    assert_eq!(service.stop_timeout.ms, 3000);
    let memory_max = Some(bytesize::ByteSize::mib(512));
    let limits = Limits { memory_max, cpu_weight: Some(50), pids_max: Some(100) };
    assert_eq!((service.limits(), file.limits()), (limits, limits));
    assert_eq!(file.limit_of(Hook::HandOver).as_secs(), 120);
    assert_eq!(file.checks["smoke"].command, ["./bin/web", "--smoke", "{port}"]);
    assert_eq!(file.limit_of(Hook::AfterInstall).as_secs(), 5);
    let unit = ServiceFile::parse("[service]\nsystemd_unit = \"web.service\"").unwrap();
    assert_eq!(unit.service.unwrap().systemd_unit.as_deref(), Some("web.service"));
    assert_eq!(unit.hooks.timeout.ms, 60_000);
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    let wrong = [
        ("[service]\ncomand = [\"x\"]", "comand"),
        ("[service]\ncommand = []", "either"),
        ("[service]\ncommand = [\"x\"]\nsystemd_unit = \"x.service\"", "either"),
        ("[service]\ncommand = [\"../x\"]", ".."),
        ("[service]\nsystemd_unit = \"../x.service\"", "systemd_unit"),
        ("[service]\ncommand = [\"x\"]\nstop_signal = \"STOP\"", "STOP"),
        ("[service]\ncommand = [\"x\"]\nenv = { COHORT_FENCE = \"1\" }", "COHORT_FENCE"),
        ("[service]\ncommand = [\"x\"]\nstop_timeout = \"1h\"", "stop_timeout"),
        ("[service]\ncommand = [\"x\"]\nmemory_max = \"1kB\"", "memory_max"),
        ("[service]\ncommand = [\"x\"]\nmemory_max = \"much\"", "memory_max"),
        ("[service]\ncommand = [\"x\"]\ncpu_weight = 0", "cpu_weight"),
        ("[service]\ncommand = [\"x\"]\npids_max = 0", "pids_max"),
        ("[service]\nsystemd_unit = \"x.service\"\npids_max = 9", "systemd_unit"),
        ("[service]\ncommand = [\"x\"]\ntype = \"dbus\"", "dbus"),
        ("[service]\ncommand = [\"x\"]\ntype = \"forking\"", "pid_file"),
        ("[service]\ncommand = [\"x\"]\npid_file = \"x.pid\"", "forking"),
        (
            "[service]\ncommand = [\"x\"]\ntype = \"forking\"\npid_file = \"/run/x.pid\"",
            "/run/x.pid",
        ),
        ("[service]\ncommand = [\"x\"]\nwatchdog = \"1s\"", "notify"),
        ("[service]\ncommand = [\"x\"]\ntype = \"notify\"\nwatchdog = \"1ms\"", "watchdog"),
        ("[service]\ncommand = [\"x\"]\nlisten = { http = \"localhost:80\" }", "listen.http"),
        ("[service]\ncommand = [\"x\"]\nlisten = { http = \"0\" }", "listen.http"),
        ("[service]\ncommand = [\"x\"]\nlisten = { http = \"9{port}\" }", "listen.http"),
        ("[service]\ncommand = [\"x\"]\nlisten = { http = \"127.0.0.{port}:80\" }", "listen"),
        ("[service]\ncommand = [\"x\"]\nlisten = { a = \"80\", b = \"80\" }", "listen.b"),
        ("[service]\ncommand = [\"x\"]\nlisten = { \"a:b\" = \"80\" }", "a:b"),
        ("[service]\nsystemd_unit = \"x.service\"\nlisten = { http = \"80\" }", "systemd_unit"),
        ("[hooks]\ntimeout = \"0s\"", "timeout"),
        ("[hooks]\ntimeouts = { on-start = \"1s\" }", "on-start"),
        ("window = 1", "window"),
        ("[checks.smoke]\ncommand = []", "checks.smoke"),
        ("[checks.smoke]\ncommand = [\"bin/../../x\"]", "checks.smoke"),
        ("[checks.smoke]\ncommand = [\"x\"]\nuser = \"root\"", "user"),
        ("[checks.\"host:x\"]\ncommand = [\"x\"]", "host:x"),
    ];
    for (text, word) in wrong {
        let error = cohort_base::chain(&ServiceFile::parse(text).unwrap_err());
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn what_the_guide_shows_is_accepted() {
    let guide = include_str!("../../../docs/services.md");
    let blocks: Vec<&str> =
        guide.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 7, "{}", blocks.len());
    for block in blocks {
        if block.starts_with("# in web.toml") {
            let text = format!("app = \"web\"\nchannel = \"stable\"\n{block}");
            let policy: Policy = toml::from_str(&text).unwrap();
            policy.validate().unwrap();
            continue;
        }
        ServiceFile::parse(block).unwrap_or_else(|error| panic!("{error}:\n{block}"));
    }
}

#[test]
fn a_socket_is_at_a_port_of_every_address_or_of_the_servers_own() {
    let at = |text, own: Option<&str>| address(text, own.map(|own| own.parse().unwrap()));
    assert_eq!(at("80", None), Some("[::]:80".parse().unwrap()));
    assert_eq!(at("80", Some("10.0.0.1")), Some("10.0.0.1:80".parse().unwrap()));
    assert_eq!(at("127.0.0.1:80", Some("10.0.0.1")), Some("127.0.0.1:80".parse().unwrap()));
    assert_eq!(at("127.0.0.1:0", None), None);
    assert_eq!(at("localhost:80", None), None);
}
