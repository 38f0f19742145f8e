//! Every command that a hint can name, as data.
//!
//! A test of the command line parses each of them with the command line's own parser, so that no
//! hint names a command or a flag that does not exist.

use std::fmt::{self, Display, Formatter};

use cohort_core::ids::{AppId, GroupId, ServerId, Version};

/// A command to type. A field is an argument of that name; `None`: a placeholder, or omitted if the
/// command allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Agent {
        hub: Option<String>,
    },
    AppApply,
    AppRemove {
        app: AppId,
    },
    AppShow {
        app: AppId,
        group: GroupId,
    },
    AuthorityFinish,
    ChannelSet {
        app: Option<AppId>,
        channel: Option<String>,
        version: Option<Version>,
        create: bool,
    },
    ContextJoin,
    ContextRenew,
    GroupList,
    GroupShow {
        group: GroupId,
    },
    GroupRecover {
        group: GroupId,
        first_server: ServerId,
    },
    GroupRemove {
        group: GroupId,
    },
    GroupRemoveServer {
        group: GroupId,
        server: ServerId,
    },
    Hub {
        config: String,
    },
    HubConfirm,
    Init,
    KillOff {
        scope: Option<GroupId>,
    },
    KillStatus,
    ServerRevoked,
    Logs {
        server: ServerId,
        app: AppId,
    },
    Publish {
        app: Option<AppId>,
        channel: Option<String>,
    },
    ReleaseList,
    RolloutApprove {
        group: GroupId,
        app: AppId,
    },
    RolloutResume {
        group: GroupId,
        app: AppId,
    },
    RolloutRetry {
        group: GroupId,
        app: AppId,
    },
    RolloutStatus {
        group: GroupId,
    },
    Status {
        group: Option<GroupId>,
    },
    StatusWatch,
    TokenCreate {
        role: Option<&'static str>,
        named: bool,
    },
    TokenCreateOffline,
    Why {
        group: Option<GroupId>,
    },
}

impl Command {
    /// The words to type, after `cohort`.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut words = Words(Vec::new());
        match self {
            Command::Agent { hub } => words
                .add("agent --server SERVER --hub")
                .one(hub.as_deref().unwrap_or("HOST:7418"))
                .add("--join-token-file join.token --service-user USER"),
            Command::AppApply => words.add("app apply -f FILE"),
            Command::AppRemove { app } => words.add("app remove").one(app),
            Command::AppShow { app, group } => {
                words.add("app show").one(app).flag("--group", Some(group))
            }
            Command::AuthorityFinish => words.add("authority finish"),
            Command::ChannelSet { app, channel, version, create } => words
                .add("channel set")
                .or(app.as_ref(), "APP")
                .or(channel.as_ref(), "CHANNEL")
                .or(version.as_ref(), "VERSION")
                .maybe(create.then_some("--create").as_ref()),
            Command::ContextJoin => words.add("context join TOKEN-FILE --name NAME"),
            Command::ContextRenew => words.add("context renew"),
            Command::GroupList => words.add("group list"),
            Command::GroupShow { group } => words.add("group show").one(group),
            Command::GroupRecover { group, first_server } => words
                .add("group recover")
                .one(group)
                .flag("--first-server", Some(first_server))
                .add("--reason REASON --majority-is-lost"),
            Command::GroupRemove { group } => {
                words.add("group remove").one(group).add("--servers-are-lost")
            }
            Command::GroupRemoveServer { group, server } => {
                words.add("group remove-server").one(group).one(server)
            }
            Command::Hub { config } => words.add("hub --config").one(config),
            Command::HubConfirm => words.add("hub --config hub.toml --confirm-restored"),
            Command::Init => words.add("init --dir DIR"),
            Command::KillOff { scope } => words.add("kill off").flag("--scope", scope.as_ref()),
            Command::KillStatus => words.add("kill status"),
            Command::ServerRevoked => words.add("server revoked"),
            Command::Logs { server, app } => words.add("logs").one(server).flag("--app", Some(app)),
            Command::Publish { app, channel } => words
                .add("publish PATH --app")
                .or(app.as_ref(), "APP")
                .add("--version VERSION")
                .add("--channel")
                .or(channel.as_ref(), "CHANNEL"),
            Command::ReleaseList => words.add("release list"),
            Command::RolloutApprove { group, app } => {
                words.add("rollout approve").one(group).flag("--app", Some(app))
            }
            Command::RolloutResume { group, app } => {
                words.add("rollout resume").one(group).flag("--app", Some(app))
            }
            Command::RolloutRetry { group, app } => {
                words.add("rollout retry").one(group).flag("--app", Some(app))
            }
            Command::RolloutStatus { group } => words.add("rollout status").one(group),
            Command::Status { group } => words.add("status").maybe(group.as_ref()),
            Command::StatusWatch => words.add("status --watch"),
            Command::TokenCreate { role, named } => words
                .add("token create")
                .flag("--role", role.as_ref())
                .flag("--name", named.then_some("NAME")),
            Command::TokenCreateOffline => words.add("token create --offline hub.toml"),
            Command::Why { group } => words.add("why").maybe(group.as_ref()),
        };
        words.0
    }
}

impl Display for Command {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("cohort")?;
        for word in self.words() {
            if word.contains(char::is_whitespace) {
                write!(f, " '{word}'")?;
            } else {
                write!(f, " {word}")?;
            }
        }
        Ok(())
    }
}

struct Words(Vec<String>);

impl Words {
    fn add(&mut self, words: &str) -> &mut Self {
        self.0.extend(words.split(' ').map(str::to_owned));
        self
    }

    fn one(&mut self, word: &(impl ToString + ?Sized)) -> &mut Self {
        self.0.push(word.to_string());
        self
    }

    fn or(&mut self, word: Option<&impl ToString>, placeholder: &str) -> &mut Self {
        self.one(&word.map_or_else(|| placeholder.to_owned(), ToString::to_string))
    }

    fn maybe(&mut self, word: Option<&impl ToString>) -> &mut Self {
        self.0.extend(word.map(ToString::to_string));
        self
    }

    fn flag(&mut self, flag: &str, value: Option<impl ToString>) -> &mut Self {
        if let Some(value) = value {
            self.one(flag).one(&value);
        }
        self
    }
}

/// A flag to add to the command that was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    Agent,
    App,
    CacheDir,
    Context,
    Dir,
    Force,
    HubAddress,
    Keys,
    Repository,
    RootKey,
}

impl Flag {
    /// The words to add.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Flag::Agent => "--agent HOST:PORT --name SERVER",
            Flag::App => "--app APP",
            Flag::CacheDir => "--cache-dir DIR",
            Flag::Context => "--context DIR",
            Flag::Dir => "--dir DIR",
            Flag::Force => "--force",
            Flag::HubAddress => "--hub-address HOST:7418",
            Flag::Keys => "--keys DIR",
            Flag::Repository => "--repository DIR",
            Flag::RootKey => "--root-key FILE",
        }
    }
}
