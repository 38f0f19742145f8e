//! The command line's own parser reads every command that a hint can name, that any crate writes in
//! a text, and that a document tells people to type.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, Parser as _};
use cohort_view::command::{Command, Flag};

use crate::args::Cli;

/// The command after this one. A new variant does not compile until it is in this chain.
fn next(command: Option<&Command>) -> Option<Command> {
    let group = || "intel.zone-a".parse().unwrap();
    let app = || "web".parse().unwrap();
    let server = || "web-1".parse().unwrap();
    let text = |text: &str| Some(text.to_owned());
    Some(match command {
        None => Command::Agent { hub: text("hub.example:7418") },
        Some(Command::Agent { hub: Some(_) }) => Command::Agent { hub: None },
        Some(Command::Agent { hub: None }) => Command::AppApply,
        Some(Command::AppApply) => Command::AppRemove { app: app() },
        Some(Command::AppRemove { .. }) => Command::AppShow { app: app(), group: group() },
        Some(Command::AppShow { .. }) => Command::AuthorityFinish,
        Some(Command::AuthorityFinish) => Command::ChannelSet {
            app: Some(app()),
            channel: text("stable"),
            version: Some("1.0.0".parse().unwrap()),
            create: true,
        },
        Some(Command::ChannelSet { app: Some(_), .. }) => {
            Command::ChannelSet { app: None, channel: None, version: None, create: false }
        }
        Some(Command::ChannelSet { app: None, .. }) => Command::ContextJoin,
        Some(Command::ContextJoin) => Command::ContextRenew,
        Some(Command::ContextRenew) => Command::GroupList,
        Some(Command::GroupList) => Command::GroupShow { group: group() },
        Some(Command::GroupShow { .. }) => {
            Command::GroupRecover { group: group(), first_server: server() }
        }
        Some(Command::GroupRecover { .. }) => Command::GroupRemove { group: group() },
        Some(Command::GroupRemove { .. }) => {
            Command::GroupRemoveServer { group: group(), server: server() }
        }
        Some(Command::GroupRemoveServer { .. }) => Command::Hub { config: "a b/hub.toml".into() },
        Some(Command::Hub { .. }) => Command::HubConfirm,
        Some(Command::HubConfirm) => Command::Init,
        Some(Command::Init) => Command::KillOff { scope: Some(group()) },
        Some(Command::KillOff { scope: Some(_) }) => Command::KillOff { scope: None },
        Some(Command::KillOff { scope: None }) => Command::KillStatus,
        Some(Command::KillStatus) => Command::ServerRevoked,
        Some(Command::ServerRevoked) => Command::ReleaseList,
        Some(Command::ReleaseList) => Command::Logs { server: server(), app: app() },
        Some(Command::Logs { .. }) => {
            Command::Publish { app: Some(app()), channel: text("stable") }
        }
        Some(Command::Publish { app: Some(_), .. }) => {
            Command::Publish { app: None, channel: None }
        }
        Some(Command::Publish { app: None, .. }) => {
            Command::RolloutApprove { group: group(), app: app() }
        }
        Some(Command::RolloutApprove { .. }) => {
            Command::RolloutResume { group: group(), app: app() }
        }
        Some(Command::RolloutResume { .. }) => Command::RolloutRetry { group: group(), app: app() },
        Some(Command::RolloutRetry { .. }) => Command::RolloutStatus { group: group() },
        Some(Command::RolloutStatus { .. }) => Command::Status { group: Some(group()) },
        Some(Command::Status { group: Some(_) }) => Command::Status { group: None },
        Some(Command::Status { group: None }) => Command::StatusWatch,
        Some(Command::StatusWatch) => Command::TokenCreate { role: Some("operator"), named: true },
        Some(Command::TokenCreate { named: true, .. }) => {
            Command::TokenCreate { role: None, named: false }
        }
        Some(Command::TokenCreate { named: false, .. }) => Command::TokenCreateOffline,
        Some(Command::TokenCreateOffline) => Command::Why { group: Some(group()) },
        Some(Command::Why { group: Some(_) }) => Command::Why { group: None },
        Some(Command::Why { group: None }) => return None,
    })
}

/// An example of a placeholder: a word in upper case, `{word}` of a format string, or `…`.
/// Brackets mark what may be omitted.
fn example(word: &str) -> String {
    let word = word.trim_matches(['[', ']']);
    let inserted = word.strip_prefix('{').and_then(|word| word.strip_suffix('}'));
    match inserted.map_or_else(|| word.to_owned(), str::to_uppercase).as_str() {
        "" | "…" => "text".to_owned(),
        "VERSION" => "1.0.0".to_owned(),
        "ROLE" => "operator".to_owned(),
        name if name.chars().all(|c| c.is_ascii_uppercase() || c == '-') => name.to_lowercase(),
        _ => word.to_owned(),
    }
}

fn parse<W: AsRef<str>>(words: &[W]) -> Result<Cli, clap::Error> {
    let words = words.iter().map(|word| example(word.as_ref()));
    Cli::try_parse_from(["cohort".to_owned()].into_iter().chain(words))
}

#[test]
fn every_command_of_a_hint_is_understood() {
    let mut seen = 0;
    let mut command = next(None);
    while let Some(this) = command {
        parse(&this.words()).unwrap_or_else(|error| panic!("{this}: {error}"));
        seen += 1;
        command = next(Some(&this));
    }
    assert!(seen > 25, "only {seen}");
}

/// The commands that a flag is a hint for, and the next flag: a new one does not compile until it
/// is in this chain.
fn commands_of(flag: Flag) -> (&'static [&'static str], Option<Flag>) {
    match flag {
        Flag::Agent => (&["status", "kill on", "why"], Some(Flag::App)),
        Flag::App => {
            (&["rollout pause intel.zone-a", "rollout plan intel.zone-a"], Some(Flag::CacheDir))
        }
        Flag::CacheDir => (&["mirror --origin http://hub:7419/"], Some(Flag::Context)),
        Flag::Context => (&["status", "context join token --name ann"], Some(Flag::Dir)),
        Flag::Dir => (&["init"], Some(Flag::Force)),
        Flag::Force => {
            let commands = &["group remove-server intel.zone-a web-1", "app apply -f web.toml"];
            (commands, Some(Flag::HubAddress))
        }
        Flag::HubAddress => (&["token create --offline hub.toml"], Some(Flag::Keys)),
        Flag::Keys => {
            let commands =
                &["publish dist --app web --version 1.0.0", "channel set web stable 1.0.0"];
            (commands, Some(Flag::Repository))
        }
        Flag::Repository => (&["repository push s3://bucket/prefix"], Some(Flag::RootKey)),
        Flag::RootKey => (&["repository rotate-key targets", "repository threshold root 2"], None),
    }
}

#[test]
fn every_flag_of_a_hint_is_understood_by_the_commands_that_name_it() {
    let mut flag = Some(Flag::Agent);
    while let Some(this) = flag {
        let (commands, next) = commands_of(this);
        for command in commands {
            let line = format!("{command} {}", this.words());
            parse(&words(&line)).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        flag = next;
    }
}

/// Sources and documents, except those of tests, below a directory or file.
fn files(path: &Path, into: &mut Vec<PathBuf>) {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if path.is_dir() && !name.starts_with('.') && !["target", "tests"].contains(&name) {
        for entry in fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), into);
        }
    } else if name.ends_with(".md") || (name.ends_with(".rs") && !name.ends_with("_test.rs")) {
        into.push(path.to_owned());
    }
}

/// What a file has to type (strings of the code, fenced blocks), and its prose; a line that
/// continues the one before is part of it.
fn typed_and_prose(path: &Path) -> (String, String) {
    let text = fs::read_to_string(path).unwrap();
    let is_code = path.extension().is_some_and(|extension| extension == "rs");
    let (mut typed, mut prose) = (String::new(), String::new());
    let mut fenced = false;
    for line in text.lines().map(str::trim) {
        let is_prose = if is_code { line.starts_with("//") } else { !fenced };
        if !is_code && line.starts_with("```") {
            fenced = !fenced;
        } else if is_prose {
            prose.push_str(line.trim_start_matches(['/', '!', ' ']));
            prose.push(' ');
        } else {
            typed.push_str(line);
            typed.push('\n');
        }
    }
    let typed = typed.replace("\\\n", "");
    // A string ends where its quotation mark or an escaped line break is.
    (if is_code { typed.replace(['"', '\\'], "\n") } else { typed }, prose)
}

/// Not a command: the common name of a fleet's authority.
const NOT_COMMANDS: [&str; 1] = ["authority"];

/// The commands in a text, each up to its closing backquote, else to the end of the line.
fn commands(text: &str) -> impl Iterator<Item = (bool, &str)> {
    let spaced = text.match_indices("cohort ");
    spaced.filter_map(move |(at, name)| {
        let before = text[..at].chars().next_back();
        let rest = &text[at + name.len()..];
        let quoted = before == Some('`');
        let end = rest.find(if quoted { '`' } else { '\n' });
        let part_of_a_word = before.is_some_and(|c| c.is_alphanumeric() || "-_./".contains(c));
        let named = rest.starts_with(|c: char| c.is_ascii_lowercase()) && !part_of_a_word;
        let command = &rest[..end.unwrap_or(rest.len())];
        named.then_some((quoted, command))
    })
}

/// The words of a command, as a shell splits them, without what follows it.
fn words(line: &str) -> Vec<&str> {
    let (mut words, mut rest) = (Vec::new(), line.trim_start());
    while let Some(first) = rest.chars().next().filter(|first| !"#>;".contains(*first)) {
        let (word, after) = match first {
            '\'' | '"' => rest[1..].split_once(first).unwrap(),
            _ => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        words.push(word);
        rest = after.trim_start();
    }
    words
}

/// Whether these are the words of a command's name, without arguments.
fn is_name(words: &[&str]) -> bool {
    let mut command = &Cli::command();
    words.iter().all(|word| {
        let found = command.find_subcommand(word);
        command = found.unwrap_or(command);
        found.is_some()
    })
}

#[test]
fn every_command_in_a_text_is_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut all = Vec::new();
    files(&root.canonicalize().unwrap(), &mut all);
    let (mut seen, mut wrong) = (0, Vec::new());
    for file in all {
        let (typed, prose) = typed_and_prose(&file);
        let typed = commands(&typed).map(|(_, command)| (false, command));
        let mentioned = commands(&prose).filter(|(quoted, _)| *quoted);
        for (mentioned, command) in typed.chain(mentioned) {
            let words = words(command);
            if NOT_COMMANDS.contains(&words[0]) || (mentioned && is_name(&words)) {
                continue;
            }
            seen += 1;
            if let Err(error) = parse(&words) {
                wrong.push(format!("{}: cohort {command}: {error}", file.display()));
            }
        }
    }
    assert!(seen > 60, "only {seen}");
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_command_is_read_as_far_as_it_goes() {
    let text = "first: cohort a b\n run `cohort c d` (/usr/bin/cohort e), cohort F";
    assert_eq!(commands(text).collect::<Vec<_>>(), [(false, "a b"), (true, "c d")]);
    assert_eq!(words("on --reason 'a b' # why"), ["on", "--reason", "a b"]);
    assert!(is_name(&["group", "list"]) && !is_name(&["group", "lst"]));
    assert!(parse(&["group"]).is_err() && parse(&["group", "recover"]).is_err());
}
