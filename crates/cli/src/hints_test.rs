//! Every command and flag that a hint can name is parsed by the command line's own parser.

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
        Some(Command::AppApply) => Command::ChannelSet {
            app: Some(app()),
            channel: text("stable"),
            version: Some("1.0.0".parse().unwrap()),
        },
        Some(Command::ChannelSet { app: Some(_), .. }) => {
            Command::ChannelSet { app: None, channel: None, version: None }
        }
        Some(Command::ChannelSet { app: None, .. }) => Command::ContextJoin,
        Some(Command::ContextJoin) => Command::ContextRenew,
        Some(Command::ContextRenew) => Command::GroupList,
        Some(Command::GroupList) => Command::GroupShow { group: group() },
        Some(Command::GroupShow { .. }) => {
            Command::GroupRemoveServer { group: group(), server: server() }
        }
        Some(Command::GroupRemoveServer { .. }) => Command::Hub { config: "a b/hub.toml".into() },
        Some(Command::Hub { .. }) => Command::Init,
        Some(Command::Init) => Command::KillOff { scope: Some(group()) },
        Some(Command::KillOff { scope: Some(_) }) => Command::KillOff { scope: None },
        Some(Command::KillOff { scope: None }) => Command::KillStatus,
        Some(Command::KillStatus) => Command::Publish { app: Some(app()), channel: text("stable") },
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

/// Placeholders are in upper case; names are not.
fn parse(words: impl IntoIterator<Item = String>) -> Result<Cli, clap::Error> {
    let real = |word: String| match word.as_str() {
        "VERSION" => "1.0.0".to_owned(),
        placeholder if placeholder.chars().all(|c| c.is_ascii_uppercase() || c == '-') => {
            placeholder.to_lowercase()
        }
        _ => word,
    };
    Cli::try_parse_from(["cohort".to_owned()].into_iter().chain(words.into_iter().map(real)))
}

#[test]
fn every_command_of_a_hint_is_understood() {
    let mut seen = 0;
    let mut command = next(None);
    while let Some(this) = command {
        parse(this.words()).unwrap_or_else(|error| panic!("{this}: {error}"));
        seen += 1;
        command = next(Some(&this));
    }
    assert!(seen > 25, "only {seen}");
}

#[test]
fn every_flag_of_a_hint_is_understood_by_the_commands_that_name_it() {
    // Each flag of the match below, which has no wildcard.
    let flags = [
        Flag::Agent,
        Flag::App,
        Flag::CacheDir,
        Flag::Context,
        Flag::Dir,
        Flag::Force,
        Flag::HubAddress,
        Flag::Keys,
        Flag::Repository,
    ];
    let commands = |flag: Flag| match flag {
        Flag::Agent => ["status", "kill on", "why"].as_slice(),
        Flag::App => &["rollout pause intel.zone-a", "rollout plan intel.zone-a"],
        Flag::CacheDir => &["mirror --origin http://hub:7419/"],
        Flag::Context => &["status", "context join token --name ann"],
        Flag::Dir => &["init"],
        Flag::Force => &["group remove-server intel.zone-a web-1"],
        Flag::HubAddress => &["token create --offline hub.toml"],
        Flag::Keys => &["publish dist --app web --version 1.0.0", "channel set web stable 1.0.0"],
        Flag::Repository => &["repository push s3://bucket/prefix"],
    };
    for flag in flags {
        for command in commands(flag) {
            let line = format!("{command} {}", flag.words());
            parse(line.split(' ').map(str::to_owned)).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }
}

/// Production sources of a crate.
fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if !path.to_str().unwrap().ends_with("_test.rs") {
            into.push(path);
        }
    }
}

#[test]
fn no_command_is_written_out_by_hand() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for one in ["cli", "view"] {
        sources(&crates.join(one).join("src"), &mut files);
    }
    assert!(files.len() > 40);
    let names: Vec<String> = Cli::command()
        .get_subcommands()
        .map(|command| format!("cohort {}", command.get_name()))
        .collect();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
        for line in code.filter(|line| line.contains('"') && !line.trim_start().starts_with("//")) {
            let name = names.iter().find(|name| line.contains(name.as_str()));
            let shown = file.display();
            assert!(name.is_none(), "{shown} writes {name:?} instead of naming a Command: {line}");
        }
    }
}

/// Not a command: the common name of a fleet's authority.
const NOT_COMMANDS: [&str; 1] = ["authority"];

/// The words of a command in a sentence, which ends at the end of the string or quotation, or at a
/// punctuation mark.
fn words(rest: &str) -> Vec<&str> {
    let end = rest.find(['"', '`', '\\', ',', ';', '(', ')']).unwrap_or(rest.len());
    rest[..end].split_whitespace().map(|word| word.trim_end_matches(['.', ':'])).collect()
}

/// The mistake in a command within a sentence: a name or a flag that does not exist.
fn mistake(words: &[&str]) -> Option<String> {
    let mut command = Cli::command();
    command.build();
    let mut at = &command;
    let mut rest = words;
    while let Some((name, after)) = rest.split_first().filter(|_| at.has_subcommands()) {
        let mut found = name.split('|').map(|one| at.find_subcommand(one));
        let Some(Some(next)) = found.next() else { return Some(format!("no command `{name}`")) };
        if found.any(|other| other.is_none()) {
            return Some(format!("no command `{name}`"));
        }
        (at, rest) = (next, after);
    }
    if at.has_subcommands() {
        return Some("a command without its subcommand".to_owned());
    }
    let flag = |word: &&str| word.strip_prefix("--").map(|word| word.to_owned());
    rest.iter().filter_map(flag).find(|flag| {
        at.get_arguments().all(|arg| arg.get_long() != Some(flag.split('=').next().unwrap()))
    })
}

/// Hub, agent and mirror send hints as text: they do not know the command line.
#[test]
fn every_command_in_a_text_of_another_crate_exists() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for one in fs::read_dir(&crates).unwrap() {
        let one = one.unwrap();
        if !["cli", "view", "trial", "simulate"].contains(&one.file_name().to_str().unwrap()) {
            sources(&one.path().join("src"), &mut files);
        }
    }
    let mut seen = 0;
    for file in files.iter().filter(|file| !file.ends_with("testing.rs")) {
        let text = fs::read_to_string(file).unwrap();
        let code: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.starts_with("//")).collect();
        // A string that continues on the next line is one sentence.
        let code = code.join("\n").replace("\\\n", "");
        for (at, _) in code.match_indices("cohort ") {
            let words = words(&code[at + "cohort ".len()..]);
            let before = code[..at].chars().next_back();
            let Some(first) = words.first() else { continue };
            let named = first.starts_with(|c: char| c.is_ascii_lowercase());
            if before.is_some_and(char::is_alphanumeric) || !named || NOT_COMMANDS.contains(first) {
                continue;
            }
            seen += 1;
            let wrong = mistake(&words);
            assert!(wrong.is_none(), "{}: cohort {}: {wrong:?}", file.display(), words.join(" "));
        }
    }
    assert!(seen > 20, "only {seen}");
    assert!(mistake(&["grup", "list"]).is_some() && mistake(&["group", "lst"]).is_some());
    assert!(mistake(&["group"]).is_some() && mistake(&["kill", "on|of"]).is_some());
    assert!(mistake(&["token", "create", "--nme", "NAME"]).is_some());
    assert_eq!(mistake(&["kill", "on|off"]), None);
}
