//! `cohort server`, `cohort person`: who has joined; certificates that count no more, at the hub
//! and at agents, which pass it on.

use std::collections::BTreeMap;

use clap::{Args, Subcommand, ValueEnum};
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_identity::{InvalidPeer, Peer, PeerName, Role, TokenState, UnixTime};
use cohort_registry::fleet::Fleet;
use cohort_registry::records::ServerRecord;
use cohort_view::command::Flag;
use cohort_view::figures::brief;
use cohort_view::hint::Hint;
use cohort_view::report::Origin;
use cohort_view::table::{cell, render, table};
use cohort_wire::agent::REVOCATIONS;
use cohort_wire::http::Call;
use cohort_wire::hub::{FLEET, TOKEN, TokenListed};
use cohort_wire::kill::{KillRegister, KillScope, Position, SignedKill};
use cohort_wire::revocation::{
    Revocation, RevocationsAnswer, RevocationsExchange, SignedRevocation,
};

use crate::answer::{Answer, Revoked};
use crate::args::{Direct, Global};
use crate::commands::status::{self, StatusArgs};
use crate::commands::{context_of, no_such_name};
use crate::connect::Hub;
use crate::context::Context;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::fleet::{Known, is_direct, know, of_hub};
use crate::kill_registers::{Places, Verified};
use crate::output::{Output, look, note};
use crate::policy_known::KnownPolicy;

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// List the servers that have joined, with their groups and addresses
    List {
        /// Only of this group
        group: Option<GroupId>,
    },
    /// Show what a server does and waits for, same as `cohort status SERVER`
    Show {
        /// Server name
        server: ServerId,
        #[command(flatten)]
        direct: Direct,
    },
    /// Revoke a server's certificates: its key was stolen
    Revoke(RevokeServerArgs),
    /// Show every revoked certificate, of servers and people
    Revoked {
        #[command(flatten)]
        direct: Direct,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PersonCommand {
    /// Revoke a person's certificates: a key was stolen, or somebody has left
    Revoke(RevokePersonArgs),
    /// Show every revoked certificate, of servers and people
    Revoked {
        #[command(flatten)]
        direct: Direct,
    },
}

/// Lists servers as the hub knows them.
async fn servers(global: &Global, group: Option<&GroupId>) -> Result<Exit, Failure> {
    let fleet = of_hub(&context_of(global)?).await?;
    if let Some(group) = group.filter(|group| !fleet.groups.contains_key(*group)) {
        return Err(no_such_name(&Known::of(&fleet), group.as_str()));
    }
    let wanted = |it: &&ServerRecord| group.is_none_or(|group| it.group == *group);
    let mut servers: Vec<&ServerRecord> = fleet.servers.iter().filter(wanted).collect();
    servers.sort_by_key(|it| (&it.group, &it.server));
    global.output.answer(&Answer::ServerList(&servers), || {
        let mut rows = table(look(), &["SERVER", "GROUP", "ADDRESS", "LABELS"]);
        for it in &servers {
            let labels: Vec<String> =
                it.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            rows.add_row([
                cell(&it.server),
                cell(&it.group),
                cell(&it.address),
                cell(labels.join(",")),
            ]);
        }
        render(&rows)
    });
    Ok(Exit::Done)
}

#[derive(Debug, Args)]
pub(crate) struct RevokeServerArgs {
    /// Server name
    #[arg(value_parser = peer_name)]
    server: PeerName,
    /// It is a hub's name, as in its certificate; a hub that has the authority renews its own
    #[arg(long)]
    hub: bool,
    /// Reason, shown wherever it is listed
    #[arg(long, default_value = "")]
    reason: String,
    /// Revoke it although the hub knows nobody of that name
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    direct: Direct,
}

#[derive(Debug, Args)]
pub(crate) struct RevokePersonArgs {
    /// Name in the person's certificate
    #[arg(value_parser = peer_name)]
    person: PeerName,
    /// The role of the certificates
    #[arg(long, value_enum, default_value = "operator")]
    role: PersonRole,
    /// Reason, shown wherever it is listed
    #[arg(long, default_value = "")]
    reason: String,
    /// Revoke it although the hub knows nobody of that name
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    direct: Direct,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PersonRole {
    Viewer,
    Operator,
    Publisher,
}

fn peer_name(text: &str) -> Result<PeerName, InvalidPeer> {
    PeerName::new(text)
}

pub(crate) async fn server(global: &Global, command: &ServerCommand) -> Result<Exit, Failure> {
    match command {
        ServerCommand::List { group } => servers(global, group.as_ref()).await,
        ServerCommand::Show { server, direct } => {
            status::run(global, &StatusArgs::of_server(server, direct)).await
        }
        ServerCommand::Revoke(RevokeServerArgs { server, hub, reason, force, direct }) => {
            let role = if *hub { Role::Hub } else { Role::Agent };
            revoke(global, Peer { role, name: server.clone() }, (reason, *force), direct).await
        }
        ServerCommand::Revoked { direct } => list(global, direct).await,
    }
}

pub(crate) async fn person(global: &Global, command: &PersonCommand) -> Result<Exit, Failure> {
    match command {
        PersonCommand::Revoke(RevokePersonArgs { person, role, reason, force, direct }) => {
            let role = match role {
                PersonRole::Viewer => Role::Viewer,
                PersonRole::Operator => Role::Operator,
                PersonRole::Publisher => Role::Publisher,
            };
            revoke(global, Peer { role, name: person.clone() }, (reason, *force), direct).await
        }
        PersonCommand::Revoked { direct } => list(global, direct).await,
    }
}

async fn revoke(
    global: &Global,
    peer: Peer,
    (reason, force): (&str, bool),
    direct: &Direct,
) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    if context.identity()?.peer() == &peer {
        return Err(Failure::usage(format!("{peer} is you: another operator has to revoke it")));
    }
    if !force && !is_direct(direct) {
        check_known(&context, &peer).await?;
    }
    take_over_switches(&context, &peer, direct).await?;
    let (places, failures) = spread(&context, &peer, reason, direct).await?;
    let (at, by) = (UnixTime::now().as_secs(), context.identity()?.peer().to_string());
    let shown = Revoked { peer: peer.to_string(), at, by, reason: reason.to_owned() };
    global.output.answer(&Answer::Revoke(shown), || {
        let counted = if places == 1 { "1 place".to_owned() } else { format!("{places} places") };
        let tokens = match peer.role {
            Role::Operator => "unused join tokens are revoked, too: make new ones\n",
            _ => "",
        };
        format!("certificates of {peer} are revoked (known in {counted}, spreading)\n{tokens}")
    });
    failures.iter().for_each(|failure| note(&format!("warning: {}", failure.error)));
    if global.output == Output::Text && peer.role == Role::Operator {
        for app in signed_by(&context, &peer).await.unwrap_or_default() {
            note(&format!(
                "{peer} signed the policy of {app}, which groups will refuse: sign it again"
            ));
            note(&format!(
                "  cohort app show {app} > {app}.toml && cohort app apply -f {app}.toml"
            ));
        }
    }
    Ok(Exit::Done)
}

/// The apps whose policy this operator signed last, as far as the hub answers.
async fn signed_by(context: &Context, peer: &Peer) -> Result<Vec<AppId>, Failure> {
    let (identity, by) = (context.identity()?, peer.to_string());
    let fleet: Fleet = Hub::of(context)?.call(Call::get(FLEET)).await?;
    let signed = fleet.policies.keys().filter(|app| {
        let known = KnownPolicy::in_fleet(&fleet, app, &identity).ok().flatten();
        known.is_some_and(|known| known.by == by)
    });
    Ok(signed.cloned().collect())
}

/// A revocation does not wait for the hub, which alone knows the names.
#[expect(clippy::unnecessary_wraps, reason = "the result of a check that could not be made")]
fn unsure(peer: &Peer) -> Result<(), Failure> {
    note(&format!("the hub does not answer: nobody has checked that there is a {peer}"));
    Ok(())
}

/// Refuses a name that somebody else has, as far as the hub knows: the right certificate would stay
/// valid. The first operator, and people of an authority of one's own, have joined by no token.
async fn check_known(context: &Context, peer: &Peer) -> Result<(), Failure> {
    let name = &peer.name;
    let unknown = |error: String| {
        Failure::usage(error).hint(Hint::add("to revoke it all the same", Flag::Force))
    };
    match peer.role {
        Role::Hub => Ok(()),
        Role::Agent => {
            let Ok((known, Origin::Hub { .. })) = know(context).await else {
                return unsure(peer);
            };
            match known.group_of(name.as_str()) {
                Some(_) => Ok(()),
                None => Err(unknown(format!("no group has a server `{name}`"))),
            }
        }
        Role::Viewer | Role::Operator | Role::Publisher => {
            // A revocation needs no hub.
            let Ok(hub) = Hub::of(context) else { return unsure(peer) };
            let Ok(tokens) = hub.call::<Vec<TokenListed>>(Call::get(TOKEN)).await else {
                return unsure(peer);
            };
            let joined = tokens.into_iter().filter_map(|token| match token.state {
                TokenState::Used { peer, .. } => Some(peer),
                TokenState::Unused | TokenState::Revoked => None,
            });
            let roles: Vec<Role> = joined.filter(|it| it.name == *name).map(|it| it.role).collect();
            match roles.first() {
                _ if roles.contains(&peer.role) => Ok(()),
                Some(role) => Err(unknown(format!("`{name}` has joined as {role}"))
                    .hint(format!("cohort person revoke {name} --role {role}"))),
                None => {
                    note(&format!("warning: nobody has joined by a token as {peer}"));
                    note(
                        "  if that is not the name, the right certificate is still valid: \
                          cohort token list",
                    );
                    Ok(())
                }
            }
        }
    }
}

/// What the peer has stopped stays stopped, also where its signature has not arrived yet: signed
/// again, by whoever revokes it.
async fn take_over_switches(
    context: &Context,
    peer: &Peer,
    direct: &Direct,
) -> Result<(), Failure> {
    let identity = context.identity()?;
    let known = Places::of(context, direct, None).await?.gather(identity.roots()).await;
    let by = peer.to_string();
    for (scope, Verified { register, .. }) in
        known.registers.iter().filter(|(_, known)| known.by == by)
    {
        if !register.on {
            // Whether that was right, only people know: it may have been a year ago.
            let ago = brief(UnixTime::now().as_secs().saturating_sub(register.at) * 1000);
            note(&format!("{by} turned the kill switch of {scope} off {ago} ago"));
            note(&format!("  if it should be on: cohort kill on --scope {scope} --reason REASON"));
            continue;
        }
        let at = UnixTime::now().as_secs();
        let Position { epoch, on } = known.next(scope, true, at);
        let register = KillRegister { epoch, on, at, ..register.clone() };
        let signed = SignedKill::sign(&identity, &register).or_fail("kill")?;
        let (taken, failures) = Places::of(context, direct, Some(scope)).await?.give(&signed).await;
        note(&format!("the kill switch of {scope}, which {by} turned on, is yours now"));
        if taken == 0 {
            failures.iter().for_each(|failure| note(&format!("warning: {}", failure.error)));
        }
    }
    Ok(())
}

/// Signs a revocation and gives it to every place. Returns how many have it, and why others do not.
///
/// # Errors
/// If no place has it.
pub(crate) async fn spread(
    context: &Context,
    peer: &Peer,
    reason: &str,
    direct: &Direct,
) -> Result<(usize, Vec<Failure>), Failure> {
    let Peer { role, name } = peer.clone();
    let revocation = Revocation {
        role,
        name,
        at: UnixTime::now().as_secs(),
        again: 0,
        reason: reason.to_owned(),
    };
    let signed = SignedRevocation::sign(&context.identity()?, &revocation).or_fail("revocation")?;
    let exchange = RevocationsExchange { has: BTreeMap::new(), news: vec![signed] };
    let key = revocation.key();
    let (mut places, mut failures) = (0, Vec::new());
    for (name, answer) in ask(context, direct, &exchange).await? {
        match answer {
            Ok(answer) if answer.has.get(&key).is_some_and(|has| *has >= revocation.edition()) => {
                places += 1;
            }
            Ok(_) => failures.push(Failure::new("rejected", format!("{name} did not take it"))),
            Err(failure) => failures.push(failure),
        }
    }
    if places == 0 {
        let first = failures.into_iter().next();
        let failure = first.unwrap_or_else(|| Failure::new("unreachable", "no place is known"));
        return Err(failure.hint(Hint::add("any agent accepts it and spreads it", Flag::Agent)));
    }
    Ok((places, failures))
}

async fn list(global: &Global, direct: &Direct) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let answers = ask(&context, direct, &RevocationsExchange::default()).await?;
    let identity = context.identity()?;
    let mut known: BTreeMap<String, u64> = BTreeMap::new();
    // Of the first that each place names.
    let mut why: BTreeMap<String, (String, String)> = BTreeMap::new();
    let (mut answered, mut failed) = (0, None);
    for (_, answer) in answers {
        match answer {
            Ok(answer) => {
                answered += 1;
                for signed in &answer.news {
                    if let Ok((by, it)) = signed.verify(identity.roots(), UnixTime::now()) {
                        why.insert(it.key(), (by.to_string(), it.reason));
                    }
                }
                for (peer, (at, _)) in answer.has {
                    let latest = known.entry(peer).or_default();
                    *latest = at.max(*latest);
                }
            }
            Err(failure) => failed = Some(failure),
        }
    }
    if let Some(failure) = failed.filter(|_| answered == 0) {
        return Err(failure);
    }
    let mut told = |(peer, at): (String, u64)| {
        let (by, reason) = why.remove(&peer).unwrap_or_default();
        Revoked { peer, at, by, reason }
    };
    let revoked = known.into_iter().map(&mut told).collect::<Vec<_>>();
    let now = UnixTime::now().as_secs();
    global.output.answer(&Answer::RevokedList(&revoked), || {
        if revoked.is_empty() {
            return "no certificate is revoked\n".to_owned();
        }
        let mut rows = table(look(), &["CERTIFICATE", "REVOKED", "BY", "REASON"]);
        for Revoked { peer, at, by, reason } in &revoked {
            let ago = brief(now.saturating_sub(*at) * 1000);
            rows.add_row([cell(peer), cell(ago), cell(by), cell(reason)]);
        }
        render(&rows)
    });
    Ok(Exit::Done)
}

type Answers = Vec<(String, Result<RevocationsAnswer, Failure>)>;

async fn ask(
    context: &Context,
    direct: &Direct,
    exchange: &RevocationsExchange,
) -> Result<Answers, Failure> {
    let places = Places::of(context, direct, Some(&KillScope::Fleet)).await?;
    let call = |path| Call::post(path, exchange).idempotent();
    let answers = places.everywhere((REVOCATIONS, REVOCATIONS), call).await;
    let named = answers.into_iter().map(|answer| match answer {
        Ok(answered) => (answered.name, Ok(answered.answer)),
        Err(error) => (String::new(), Err(error.into())),
    });
    Ok(named.collect())
}
