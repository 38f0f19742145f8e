//! `cohort token`: join tokens. On the hub's own machine without the hub as well.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cohort_hub::HubConfig;
use cohort_identity::{Authority, JoinGrant, JoinTokens, PeerName, Role, UnixTime};
use cohort_wire::http::Call;
use cohort_wire::hub::{REVOKE_TOKEN, RevokeTokenRequest, TOKEN, TokenAnswer, TokenRequest};

use crate::args::{Global, peer_name};
use crate::commands::context_of;
use crate::commands::hub::read_config;
use crate::connect::Hub;
use crate::failure::{Exit, Failure};
use crate::output::{Output, note, say, say_json};

/// What `cohort token` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, and write it to standard output. Whoever has it can join, once
    Create(CreateArgs),
    /// Take an unused token back
    Revoke {
        /// The token's id: the second part of its text
        id: String,
    },
}

/// What `cohort token create` takes.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// What its user becomes: agent, operator, publisher or viewer
    #[arg(long, default_value = "agent")]
    role: Role,
    /// The only name that it is good for; needed to replace a server that joined before
    #[arg(long, value_parser = peer_name)]
    name: Option<PeerName>,
    /// How long it is good, in seconds [default: what the hub's configuration says]
    #[arg(long, value_name = "SECONDS")]
    valid_s: Option<u64>,
    /// Where the hub is, if not where its configuration says; may be repeated
    #[arg(long = "hub-address", value_name = "HOST:PORT")]
    addresses: Vec<String>,
    /// Make it without the hub, from the configuration of a hub that is not running
    #[arg(long, value_name = "HUB.TOML")]
    offline: Option<PathBuf>,
}

/// Does it.
pub(crate) async fn run(global: &Global, command: &TokenCommand) -> Result<Exit, Failure> {
    match command {
        TokenCommand::Create(args) => create(global, args).await,
        TokenCommand::Revoke { id } => revoke(global, id).await,
    }
}

async fn create(global: &Global, args: &CreateArgs) -> Result<Exit, Failure> {
    if args.role == Role::Hub {
        return Err(Failure::usage("nobody joins as hub: the hub makes its own certificate"));
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
            let hub = Hub::of(&context_of(global)?)?;
            hub.call::<TokenAnswer>(Call::post(TOKEN, &request)).await.map_err(|error| {
                let away = crate::connect::is_away(&error);
                let failure = Failure::from(error);
                if !away {
                    return failure;
                }
                failure.hint("on the hub's machine, while it is stopped: --offline hub.toml")
            })?
        }
    };
    match global.output {
        Output::Json => say_json(&answer),
        Output::Text => {
            say(&format!("{}\n", answer.token));
            let validity = match answer.expires_at {
                Some(at) => match jiff::Timestamp::from_second(at.cast_signed()) {
                    Ok(at) => format!(", until {at}"),
                    Err(_) => String::new(),
                },
                None => String::new(),
            };
            note(&format!("token {}: good once, for the role {}{validity}", answer.id, args.role));
        }
    }
    Ok(Exit::Done)
}

/// As the hub would.
fn make(config: &HubConfig, args: &CreateArgs) -> Result<TokenAnswer, Failure> {
    let authority = Authority::open(&config.authority_dir())
        .map_err(|error| Failure::of("authority", &error))?;
    let tokens =
        JoinTokens::open(&config.tokens_dir()).map_err(|error| Failure::of("token", &error))?;
    let now = UnixTime::now();
    let valid_s = args.valid_s.unwrap_or(config.token_valid_s);
    let expires_at = Some(now.as_secs().saturating_add(valid_s));
    let addresses = if args.addresses.is_empty() { &config.addresses } else { &args.addresses };
    if addresses.is_empty() {
        return Err(Failure::usage("the hub's configuration has no `addresses`")
            .hint("say --hub-address HOST:7418"));
    }
    let grant = JoinGrant { role: args.role, name: args.name.clone() };
    let token = tokens
        .create(grant, &authority.fingerprint(), addresses, expires_at, now)
        .map_err(|error| Failure::of("token", &error))?;
    Ok(TokenAnswer { id: token.id.clone(), token: token.to_text(), expires_at })
}

async fn revoke(global: &Global, id: &str) -> Result<Exit, Failure> {
    let hub = Hub::of(&context_of(global)?)?;
    let request = RevokeTokenRequest { id: id.to_owned() };
    let _answer: serde_json::Value = hub.call(Call::post(REVOKE_TOKEN, &request)).await?;
    match global.output {
        Output::Json => say_json(&serde_json::json!({ "id": id, "revoked": true })),
        Output::Text => say(&format!("token {id} is good for nothing any more\n")),
    }
    Ok(Exit::Done)
}
