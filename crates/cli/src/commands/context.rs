//! `cohort context`: an operator's identity and context directory.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cohort_identity::{Identity, JoinToken, Peer, PeerName, Role, UnixTime};
use cohort_view::command::{Command, Flag};
use cohort_view::hint::Hint;
use cohort_wire::http::Call;
use cohort_wire::hub::{JOIN, JoinAnswer, JoinRequest, RENEW, RenewAnswer, RenewRequest};

use crate::answer::Answer;
use crate::args::{Global, peer_name};
use crate::commands::context_of;
use crate::connect::Hub;
use crate::context::{self, Context, ContextFile, write_file};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::layers::read_file;

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Show your identity and the hub
    Show,
    /// Create a context directory from a join token
    Join(JoinArgs),
    /// Renew your certificate
    Renew,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// File with the token; `-` for standard input
    token: PathBuf,
    /// Your name in the audit trail
    #[arg(long, value_parser = peer_name)]
    name: PeerName,
    /// Role of the token
    #[arg(long, default_value = "operator")]
    role: Role,
}

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
    let you = identity.peer();
    let answer = Answer::ContextShow { dir: &context.dir, you, until, hub: addresses };
    global.output.answer(&answer, || {
        let mut text = format!(
            "you are {you}, until {until_text}\n{hub} at {}\ncontext directory {}\n",
            addresses.join(", "),
            context.dir.display()
        );
        if identity.is_expiring(UnixTime::now()) {
            text.push_str(&format!("your certificate expires soon: {}\n", Command::ContextRenew));
        }
        text
    });
    Ok(Exit::Done)
}

async fn join(global: &Global, args: &JoinArgs) -> Result<Exit, Failure> {
    let dir = context::folder(global)?;
    let file = dir.join(context::FILE);
    if file.exists() {
        return Err(Failure::new("exists", format!("{} already exists", file.display()))
            .hint(Hint::add("choose a new directory", Flag::Context)));
    }
    let text = if args.token.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).or_fail("file")?
    } else {
        read_file(&args.token)?
    };
    let token: JoinToken = text.parse().map_err(|error| {
        let create = Command::TokenCreate { role: Some("operator"), named: false };
        Failure::of("token", &error).hint(Hint::run_to("make one", create))
    })?;
    let peer = Peer { role: args.role, name: args.name.clone() };
    let folder = dir.join("identity");
    let request = Identity::prepare_request(&folder, peer.clone()).or_fail("identity")?;
    let body = JoinRequest {
        token_id: token.id.clone(),
        token_secret: token.secret().to_owned(),
        request: request.to_text(),
        server: None,
    };
    // Idempotent: for the same key, a token yields a certificate again.
    let call = Call::post(JOIN, &body).idempotent();
    let answer: JoinAnswer = Hub::joining(&token)?.call(call).await?;
    let handed = token.anchors.check(&answer.authority, answer.trusted_root.as_deref());
    handed.or_fail("token")?;
    Identity::accept(&folder, &answer.certificate, &answer.authority).or_fail("identity")?;
    let mut context = ContextFile {
        version: context::VERSION,
        hub: token.addresses.clone(),
        hub_name: answer.hub.as_str().to_owned(),
        identity: "identity".into(),
        keys: None,
        repository: None,
        mirrors: answer.mirrors.clone(),
        trusted_root: None,
    };
    if let Some(root) = &answer.trusted_root {
        write_file(&dir.join("root.json"), root)?;
        context.trusted_root = Some("root.json".into());
    }
    if context.mirrors.is_empty()
        && let Some((host, _)) = token.addresses.first().and_then(|first| first.rsplit_once(':'))
    {
        context.mirrors.push(match answer.repository_port {
            Some(port) => format!("http://{host}:{port}/"),
            None => format!("cohort://{}/", token.addresses[0]),
        });
    }
    context.write(&dir)?;
    global.output.answer(&Answer::ContextJoin { dir: &dir, you: &peer }, || {
        let next = Command::Status { group: None };
        format!("you are {peer}; context directory {}\nnext: {next}\n", dir.display())
    });
    Ok(Exit::Done)
}

async fn renew(global: &Global) -> Result<Exit, Failure> {
    renew_certificate(&context_of(global)?).await?;
    show(global)
}

pub(crate) async fn renew_certificate(context: &Context) -> Result<(), Failure> {
    let folder = context.identity_dir();
    let identity = context.identity()?;
    let request =
        Identity::prepare_request(&folder, identity.peer().clone()).or_fail("identity")?;
    let body = RenewRequest { request: request.to_text() };
    let answer: RenewAnswer = Hub::of(context)?.call(Call::post(RENEW, &body)).await?;
    let renewed =
        identity.accept_renewal(&folder, &answer.certificate, &answer.authorities, UnixTime::now());
    renewed.or_fail("identity")?;
    Ok(())
}
