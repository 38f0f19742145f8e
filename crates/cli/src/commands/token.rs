//! `cohort token`: join tokens; on the hub's machine also while the hub is stopped.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cohort_hub::HubConfig;
use cohort_identity::{
    Anchors, Authority, JoinGrant, JoinToken, JoinTokens, PeerName, Role, TokenState, UnixTime,
    sha256_hex,
};
use cohort_view::command::{Command, Flag};
use cohort_view::figures::brief;
use cohort_view::hint::Hint;
use cohort_view::table::{cell, render, table};
use cohort_wire::http::Call;
use cohort_wire::hub::{
    REVOKE_TOKEN, RevokeTokenRequest, TOKEN, TokenAnswer, TokenListed, TokenRequest,
};

use crate::answer::Answer;
use crate::args::{Global, peer_name};
use crate::commands::context_of;
use crate::commands::hub::read_config;
use crate::connect::Hub;
use crate::context::Context;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::layers::read_file;
use crate::output::{Output, look, note};
use crate::workplace;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token and print it; anyone who has it can join, once
    Create(CreateArgs),
    /// List tokens that servers have not joined with, and people, by those that they joined with
    List,
    /// Revoke an unused token
    Revoke {
        /// Token id: the second part of the token
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Role of its user: agent, operator, publisher or viewer
    #[arg(long, default_value = "agent")]
    role: Role,
    /// Bind it to this name; required for a person, and to replace a server that joined before
    #[arg(long, value_parser = peer_name)]
    name: Option<PeerName>,
    /// Validity in seconds [default: token_valid_s of the hub]
    #[arg(long, value_name = "SECONDS")]
    valid_s: Option<u64>,
    /// Address of the hub, part of the token; repeatable [default: addresses of the hub]
    #[arg(long = "hub-address", value_name = "HOST:PORT")]
    addresses: Vec<String>,
    /// Create it from the configuration of a hub that is stopped
    #[arg(long, value_name = "HUB.TOML")]
    offline: Option<PathBuf>,
}

pub(crate) async fn run(global: &Global, command: &TokenCommand) -> Result<Exit, Failure> {
    match command {
        TokenCommand::Create(args) => create(global, args).await,
        TokenCommand::List => list(global).await,
        TokenCommand::Revoke { id } => revoke(global, id).await,
    }
}

async fn create(global: &Global, args: &CreateArgs) -> Result<Exit, Failure> {
    if args.role == Role::Hub {
        return Err(Failure::usage("role `hub` cannot join: the hub issues its own certificate"));
    }
    if args.role != Role::Agent && args.name.is_none() {
        let role = args.role;
        return Err(Failure::usage("a person's token names the person")
            .hint(format!("cohort token create --role {role} --name NAME")));
    }
    let answer = match &args.offline {
        Some(file) => make(&read_config(Some(file))?, args)?,
        None => {
            let request = TokenRequest {
                role: args.role,
                name: args.name.clone(),
                valid_s: args.valid_s,
                addresses: args.addresses.clone(),
            };
            let context = context_of(global)?;
            let hub = Hub::of(&context)?;
            let made =
                hub.call::<TokenAnswer>(Call::post(TOKEN, &request)).await.map_err(|error| {
                    let offline = Command::TokenCreateOffline;
                    let away = error.is_away();
                    let failure = Failure::from(error);
                    if !away {
                        return failure;
                    }
                    failure.hint(Hint::run_to("on the hub's machine, while it is stopped", offline))
                })?;
            check_anchors(&context, &made).await?;
            made
        }
    };
    global.output.answer(&Answer::TokenCreate(&answer), || answer.token.clone() + "\n");
    if global.output == Output::Text {
        let at =
            answer.expires_at.and_then(|at| jiff::Timestamp::from_second(at.cast_signed()).ok());
        let until = at.map_or_else(String::new, |at| format!(", until {at}"));
        note(&format!("token {}: valid once, for role {}{until}", answer.id, args.role));
    }
    Ok(Exit::Done)
}

/// Checks that a token sends its user to what this operator trusts: the hub has made it.
async fn check_anchors(context: &Context, made: &TokenAnswer) -> Result<(), Failure> {
    let token: JoinToken = made.token.parse().or_fail("token")?;
    let identity = context.identity()?;
    let wrong = |what: &str, hint: &str| {
        let error = format!("the hub made a token for another {what} than your context's");
        let revoke = format!("revoke it: cohort token revoke {}", made.id);
        Err(Failure::new("token", error).hint(hint.to_owned()).hint(revoke))
    };
    let roots = identity.roots();
    let Some(authority) =
        roots.iter().map(|root| sha256_hex(root)).find(|it| *it == token.anchors.authority)
    else {
        return wrong("authority", "find out who runs this hub");
    };
    let Some(path) = context.trusted_root() else {
        note("your context has no trusted_root: compare the token's with another operator's");
        return Ok(());
    };
    let root = read_file(&path)?;
    if Anchors::of(&authority, Some(&root)) != token.anchors
        && !follows_from_ours(context, token.anchors.trusted_root.as_deref()).await
    {
        return wrong(
            "trusted root",
            "compare `trusted_root` in your context.toml with that in the hub's hub.toml",
        );
    }
    Ok(())
}

/// Whether the repository leads from this operator's root to the one with this hash, each root
/// signed by the one before: keys have been changed.
async fn follows_from_ours(context: &Context, sha256: Option<&str>) -> bool {
    let Ok(reader) = workplace::reader(context).await else { return false };
    // What is known already may suffice.
    let _ = reader.refresh().await;
    sha256.is_some_and(|hash| reader.root_hashes().iter().any(|root| root == hash))
}

/// Does what the hub would do.
fn make(config: &HubConfig, args: &CreateArgs) -> Result<TokenAnswer, Failure> {
    let authority = Authority::open(&config.authority_dir()).or_fail("authority")?;
    let tokens = JoinTokens::open(&config.tokens_dir()).or_fail("token")?;
    let now = UnixTime::now();
    let valid_s = args.valid_s.unwrap_or(config.token_valid_s);
    let expires_at = Some(now.as_secs().saturating_add(valid_s));
    let addresses = if args.addresses.is_empty() { &config.addresses } else { &args.addresses };
    if addresses.is_empty() {
        return Err(Failure::usage("the hub's configuration has no `addresses`")
            .hint(Hint::add("name one", Flag::HubAddress)));
    }
    let grant = JoinGrant { role: args.role, name: args.name.clone() };
    let root = config.read_trusted_root(None).or_fail("file")?;
    let anchors = Anchors::of(&authority.anchor(), root.as_deref());
    let token = tokens.create(grant, &anchors, addresses, expires_at, now).or_fail("token")?;
    Ok(TokenAnswer { id: token.id.clone(), token: token.to_text(), expires_at })
}

async fn list(global: &Global) -> Result<Exit, Failure> {
    let hub = Hub::of(&context_of(global)?)?;
    let tokens: Vec<TokenListed> = hub.call(Call::get(TOKEN)).await?;
    let now = UnixTime::now().as_secs();
    global.output.answer(&Answer::TokenList(&tokens), || {
        let mut table = table(look(), &["TOKEN", "ROLE", "NAME", "STATE", "CREATED"]);
        for token in &tokens {
            let name = token.name.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string);
            let created = format!("{} ago", brief(now.saturating_sub(token.created_at) * 1000));
            let state = state(token, now);
            table.add_row([&token.id, token.role.as_str(), &name, &state, &created].map(cell));
        }
        render(&table)
    });
    Ok(Exit::Done)
}

fn state(token: &TokenListed, now: u64) -> String {
    match (&token.state, token.expires_at) {
        (TokenState::Used { peer, used_at, .. }, _) => {
            format!("{peer} joined {} ago", brief(now.saturating_sub(*used_at) * 1000))
        }
        (TokenState::Revoked, _) => "revoked".to_owned(),
        (TokenState::Unused, Some(until)) if until < now => "expired".to_owned(),
        (TokenState::Unused, Some(until)) => format!("unused, for {}", brief((until - now) * 1000)),
        (TokenState::Unused, None) => "unused".to_owned(),
    }
}

async fn revoke(global: &Global, id: &str) -> Result<Exit, Failure> {
    let hub = Hub::of(&context_of(global)?)?;
    let request = RevokeTokenRequest { id: id.to_owned() };
    let _answer: serde_json::Value = hub.call(Call::post(REVOKE_TOKEN, &request)).await?;
    let answer = Answer::TokenRevoke { id, revoked: true };
    global.output.answer(&answer, || format!("token {id} revoked\n"));
    Ok(Exit::Done)
}
