//! `cohort context`: a person's own identity and folder.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cohort_base::durable;
use cohort_identity::{Alpn, Identity, JoinToken, Peer, PeerName, Role, UnixTime};
use cohort_wire::http::{Call, Client, Target};
use cohort_wire::hub::{JOIN, JoinAnswer, JoinRequest, RENEW, RenewAnswer, RenewRequest};
use serde_json::json;

use crate::args::{Global, peer_name};
use crate::commands::context_of;
use crate::connect::{Hub, is_away};
use crate::context::{self, ContextFile};
use crate::failure::{Exit, Failure};
use crate::layers::read_file;
use crate::output::{Output, say, say_json};

/// What `cohort context` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Show who you are and where the hub is
    Show,
    /// Trade a join token for a certificate, and make a context folder of it
    Join(JoinArgs),
    /// Trade your certificate for a newer one
    Renew,
}

/// What `cohort context join` takes.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The file with the token; `-`: standard input
    token: PathBuf,
    /// Your name, in the audit trail
    #[arg(long, value_parser = peer_name)]
    name: PeerName,
    /// What the token was made for
    #[arg(long, default_value = "operator")]
    role: Role,
}

/// Does it.
pub(crate) async fn run(global: &Global, command: &ContextCommand) -> Result<Exit, Failure> {
    match command {
        ContextCommand::Show => show(global),
        ContextCommand::Join(args) => join(global, args).await,
        ContextCommand::Renew => renew(global).await,
    }
}

fn show(global: &Global) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let identity = context.identity()?;
    let until = identity.validity().not_after.as_secs();
    let (hub, addresses) = context.hub()?;
    let until_text = jiff::Timestamp::from_second(until.cast_signed())
        .map_or_else(|_| "?".to_owned(), |until| until.to_string());
    match global.output {
        Output::Json => say_json(&json!({
            "dir": context.dir, "you": identity.peer(), "until": until, "hub": addresses,
        })),
        Output::Text => {
            say(&format!("you are {}, until {until_text}\n", identity.peer()));
            say(&format!("{hub} at {}\n", addresses.join(", ")));
            say(&format!("context folder {}\n", context.dir.display()));
            if identity.is_expiring(UnixTime::now()) {
                say("your certificate ends soon: cohort context renew\n");
            }
        }
    }
    Ok(Exit::Done)
}

async fn join(global: &Global, args: &JoinArgs) -> Result<Exit, Failure> {
    let dir = context::folder(global)?;
    let file = dir.join(context::FILE);
    if file.exists() {
        return Err(Failure::new("exists", format!("{} exists already", file.display()))
            .hint("say --context DIR with a new folder"));
    }
    let text = if args.token.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).map_err(|error| Failure::of("file", &error))?
    } else {
        read_file(&args.token)?
    };
    let token: JoinToken = text.parse().map_err(|error| {
        Failure::of("token", &error).hint("make one: cohort token create --role operator")
    })?;
    let peer = Peer { role: args.role, name: args.name.clone() };
    let folder = dir.join("identity");
    let request = Identity::prepare_request(&folder, peer.clone())
        .map_err(|error| Failure::of("identity", &error))?;
    let body = JoinRequest {
        token_id: token.id.clone(),
        token_secret: token.secret().to_owned(),
        request: request.to_text(),
        server: None,
    };
    let answer = ask_to_join(&token, &body).await?;
    Identity::accept(&folder, &answer.certificate, &answer.authority)
        .map_err(|error| Failure::of("identity", &error))?;
    let mut context = ContextFile {
        hub: token.addresses.clone(),
        hub_name: answer.hub.as_str().to_owned(),
        identity: "identity".into(),
        keys: None,
        repository: None,
        mirrors: answer.mirrors.clone(),
        trusted_root: None,
    };
    if let Some(root) = &answer.trusted_root {
        write(&dir.join("root.json"), root)?;
        context.trusted_root = Some("root.json".into());
    }
    if context.mirrors.is_empty()
        && let Some((host, _)) = token.addresses.first().and_then(|first| first.rsplit_once(':'))
    {
        context.mirrors.push(format!("http://{host}:{}/", answer.repository_port));
    }
    let text = toml::to_string(&context).map_err(|error| Failure::of("file", &error))?;
    write(
        &file,
        &format!("# Who you are and where the hub is. Relative paths start here.\n{text}"),
    )?;
    match global.output {
        Output::Json => say_json(&json!({ "dir": dir, "you": peer })),
        Output::Text => {
            say(&format!("you are {peer} now; context folder {}\n", dir.display()));
            say("next: cohort status\n");
        }
    }
    Ok(Exit::Done)
}

async fn ask_to_join(token: &JoinToken, body: &JoinRequest) -> Result<JoinAnswer, Failure> {
    let client = Client::joining(&token.fingerprint);
    // Any hub of the authority with the token's fingerprint is accepted, whatever its name.
    let hub = Peer::new(Role::Hub, "hub").map_err(|error| Failure::of("name", &error))?;
    let mut last = None;
    for address in &token.addresses {
        let target = Target { address: address.clone(), peer: hub.clone(), alpn: Alpn::Hub };
        // With the same key, a token gives the same certificate again.
        match client.call_json(&target, Call::post(JOIN, body).idempotent()).await {
            Err(error) if is_away(&error) => last = Some(error),
            answer => return Ok(answer?),
        }
    }
    Err(last.map_or_else(|| Failure::new("token", "the token names no hub"), Failure::from))
}

async fn renew(global: &Global) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let folder = context.identity_dir();
    let peer = context.identity()?.peer().clone();
    let request = Identity::prepare_request(&folder, peer)
        .map_err(|error| Failure::of("identity", &error))?;
    let body = RenewRequest { request: request.to_text() };
    let answer: RenewAnswer = Hub::of(&context)?.call(Call::post(RENEW, &body)).await?;
    Identity::accept(&folder, &answer.certificate, &answer.authority)
        .map_err(|error| Failure::of("identity", &error))?;
    show(global)
}

fn write(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    durable::write(path, text.as_bytes(), durable::READABLE).map_err(|error| {
        Failure::new("file", format!("{} cannot be written: {error}", path.display()))
    })
}
