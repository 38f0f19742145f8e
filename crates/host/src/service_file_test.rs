use super::ServiceFile;
use crate::hooks::Hook;

#[test]
fn a_full_file_is_read() {
    let file = ServiceFile::parse(
        r#"
        rollback = "revert"
        protocols = { reads = ["orders/1"], writes = ["orders/1"] }
        [service]
        command = ["./bin/web", "--port", "{port}"]
        env = { RUST_LOG = "info" }
        stop_signal = "SIGINT"
        stop_timeout = "3s"
        [hooks]
        timeout = "5s"
        timeouts = { hand-over = "2m" }
        "#,
    )
    .unwrap();
    assert_eq!(file.service.as_ref().unwrap().stop_timeout.ms, 3000);
    assert_eq!(file.limit_of(Hook::HandOver).as_secs(), 120);
    assert_eq!(file.limit_of(Hook::AfterInstall).as_secs(), 5);
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
        ("[hooks]\ntimeout = \"0s\"", "timeout"),
        ("[hooks]\ntimeouts = { on-start = \"1s\" }", "on-start"),
        ("window = 1", "window"),
    ];
    for (text, word) in wrong {
        let error = cohort_base::chain(&ServiceFile::parse(text).unwrap_err());
        assert!(error.contains(word), "{text}: {error}");
    }
}
