use cohort_core::policy::{Check, HttpProbe, Prestage, Probe, Size, TlsProbe};
use cohort_view::hint::Hint;

use super::{CHECK, UPDATE, parse};
use crate::failure::{Exit, Failure};

const HEAD: &str = "app = \"web\"\nchannel = \"stable\"\n";

fn refusal(rest: &str) -> Failure {
    let failure = parse(&format!("{HEAD}{rest}"), "web.toml").unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    failure
}

#[test]
fn the_example_of_the_documentation_is_read() {
    let policy = parse(
        &format!(
            "{HEAD}[update]\nmax_parallel = [\"1\", \"10%\", \"100%\"]\nmax_unavailable = 2\n\
             [[check]]\ntype = \"http\"\npath = \"/healthz\"\n\
             expect_header = {{ server = \"web\" }}\nphase = [\"pre-flight\"]\n\
             [[stage]]\nzone = \"zone-a\"\n[[stage]]\nzone = \"zone-b\"\n"
        ),
        "web.toml",
    )
    .unwrap();
    assert_eq!(policy.update.max_unavailable, Size::Count(2));
    assert_eq!((policy.checks.len(), policy.stages.len()), (1, 2));
}

#[test]
fn unknown_keys_are_refused_with_line_and_the_key_that_was_meant() {
    let failure = refusal("[update]\nmax_paralel = 1\n");
    assert_eq!(failure.kind, "unknown_key");
    assert_eq!(failure.error, "web.toml line 4: unknown key `update.max_paralel`");
    assert_eq!(failure.hints, [Hint::Meant("max_parallel".into())]);

    let failure = refusal("[[check]]\ntype = \"tcp\"\nprot = 80\n");
    assert_eq!(failure.error, "web.toml line 5: unknown key `check.prot`");
    assert_eq!(failure.hints, [Hint::Meant("port".into())]);

    let failure = refusal("colour = \"red\"\n");
    assert_eq!(failure.error, "web.toml line 3: unknown key `colour`");
    assert!(
        failure.hints[0].to_string().contains("app, channel, stage, update"),
        "{:?}",
        failure.hints
    );
}

#[test]
fn reserved_names_are_not_called_unknown() {
    for name in ["window", "phase", "protocol", "autoscale"] {
        let failure = refusal(&format!("[[{name}]]\nx = 1\n"));
        assert_eq!(failure.kind, "not_yet");
        assert!(failure.error.contains(&format!("line 3: `{name}`")), "{}", failure.error);
    }
    let failure = refusal("[[check]]\ntype = \"metric\"\n");
    assert_eq!(failure.kind, "not_yet");
}

#[test]
fn bytes_may_be_kept_back_until_their_wave_is_near() {
    let prestage =
        |rest: &str| parse(&format!("{HEAD}[update]\n{rest}"), "web.toml").unwrap().update.prestage;
    assert_eq!(prestage(""), Prestage::All);
    assert_eq!(prestage("prestage = \"all\"\n"), Prestage::All);
    assert_eq!(prestage("prestage = \"next-wave\"\n"), Prestage::NextWave);
    assert_eq!(prestage("prestage = \"wave\"\n"), Prestage::Wave);
    let failure = refusal("[update]\nprestage = \"none\"\n");
    assert_eq!(failure.kind, "malformed");
    assert!(failure.error.contains("line 4"), "{}", failure.error);
    for known in ["all", "next-wave", "wave"] {
        assert!(failure.error.contains(&format!("`{known}`")), "{}", failure.error);
    }
    let failure = refusal("prestage = \"all\"\n");
    assert_eq!(failure.kind, "unknown_key");
    assert_eq!(failure.hints, [Hint::Meant("update.prestage".into())]);
}

#[test]
fn wrong_values_are_shown_with_their_place() {
    let failure = refusal("[update]\nmin_healthy_time = \"10 seconds\"\n");
    assert_eq!(failure.kind, "malformed");
    assert!(failure.error.contains("line 4"), "{}", failure.error);
    assert!(failure.error.contains("`10 seconds`"), "{}", failure.error);
    let failure = refusal("[update]\nmax_unavailable = \"110%\"\n");
    assert!(failure.error.contains("`110%`"), "{}", failure.error);
    let failure = refusal("[update]\nhealthy_deadline = \"1s\"\n");
    assert_eq!(failure.kind, "policy");
    assert!(failure.error.contains("update.healthy_deadline"), "{}", failure.error);
    let failure = parse("app = \"web\"\n", "web.toml").unwrap_err();
    assert!(failure.error.contains("`channel`"), "{}", failure.error);
    let failure = parse("app = \"We b\"\nchannel = \"stable\"\n", "web.toml").unwrap_err();
    assert!(failure.error.contains("`We b`"), "{}", failure.error);
    let failure = parse("app = \n", "web.toml").unwrap_err();
    assert_eq!(failure.kind, "malformed");
}

#[test]
fn every_key_is_documented() {
    let manual = include_str!("../../../docs/operating.md");
    for key in UPDATE.names() {
        assert!(manual.contains(&format!("| `update.{key}` |")), "update.{key}");
    }
    for key in CHECK.names() {
        assert!(manual.contains(&format!("`check.{key}`")), "check.{key}");
    }
}

#[test]
fn a_url_of_the_server_itself_is_a_path_and_another_is_refused() {
    let check = |url: &str| {
        let text = format!(
            "app = \"web\"\nchannel = \"stable\"\n[[check]]\ntype = \"http\"\nurl = \"{url}\"\n\
             phase = [\"running\"]\n"
        );
        parse(&text, "web.toml").map(|policy| policy.checks[0].probe.clone())
    };
    for (url, port, path) in [
        ("http://127.0.0.1:{port}/healthz", None, "/healthz"),
        ("http://localhost:8080", Some("8080"), "/"),
        ("http://[::1]:8080/a?b=c", Some("8080"), "/a?b=c"),
        ("http://[::1]:{port.metrics}/", Some("\"metrics\""), "/"),
        ("https://127.0.0.1:{port}/", None, "/"),
    ] {
        let tls = url.starts_with("https").then(TlsProbe::default);
        let port = port.map(|port| serde_json::from_str(port).unwrap());
        let http = HttpProbe { port, path: path.to_owned(), tls, ..HttpProbe::default() };
        assert_eq!(check(url).unwrap(), Probe::Http(Box::new(http)), "{url}");
    }
    for url in [
        "http://10.0.0.9:80/",
        "http://127.0.0.1.evil.example:80/",
        "http://127.0.0.1:{port}@evil.example/",
        "unix:/run/app.sock",
    ] {
        assert_eq!(check(url).unwrap_err().exit, Exit::Usage, "{url}");
    }
}

#[test]
fn a_policy_that_names_no_check_looks_whether_the_app_listens() {
    let checks = |rest: &str| parse(&format!("{HEAD}{rest}"), "web.toml").unwrap().checks;
    let [Check { probe: Probe::Tcp(tcp), .. }] = &checks("")[..] else { panic!("no tcp check") };
    assert_eq!((tcp.port.as_ref(), tcp.socket.as_ref()), (None, None));
    assert_eq!(checks("check = []\n"), []);
    assert_eq!(checks("[[check]]\ntype = \"tcp\"\nport = 9\n").len(), 1);
}
