//! `cohort authority`: who issues certificates.

use clap::Subcommand;
use cohort_identity::UnixTime;
use cohort_view::command::Command;
use cohort_wire::agent::REVOCATIONS;
use cohort_wire::http::Call;
use cohort_wire::hub::{
    AUTHORITY, AuthorityStatus, FINISH_AUTHORITY, FinishAuthorityRequest, ROTATE_AUTHORITY,
};
use cohort_wire::revocation::{
    REVOCATIONS_MAX, REVOCATIONS_SENT_MAX, Revocation, RevocationsAnswer, RevocationsExchange,
    SignedRevocation,
};

use crate::answer::Answer;
use crate::args::Global;
use crate::commands::{context, context_of};
use crate::connect::Hub;
use crate::context::Context;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::output::note;

/// Digits of a fingerprint that are shown.
const SHOWN_DIGITS: usize = 16;

#[derive(Debug, Subcommand)]
pub(crate) enum AuthorityCommand {
    /// Show which authority issues certificates, which are trusted, and who has followed
    Show,
    /// Replace the authority by a new one; both are trusted until `finish`
    Rotate,
    /// End the trust in the authority that was replaced
    Finish {
        /// Also if servers have no certificate of the new one yet: they have to join again
        #[arg(long)]
        leave_behind: bool,
    },
}

pub(crate) async fn run(global: &Global, command: &AuthorityCommand) -> Result<Exit, Failure> {
    let context = context_of(global)?;
    let status: AuthorityStatus = match command {
        AuthorityCommand::Show => Hub::of(&context)?.call(Call::get(AUTHORITY)).await?,
        AuthorityCommand::Rotate => {
            let status = Hub::of(&context)?.call(Call::post(ROTATE_AUTHORITY, &())).await?;
            context::renew_certificate(&context).await?;
            note("your certificate is of the new authority; other people: cohort context renew");
            status
        }
        AuthorityCommand::Finish { leave_behind } => {
            // Otherwise this would be the last request that the hub accepts.
            context::renew_certificate(&context).await?;
            let request = FinishAuthorityRequest { leave_behind: *leave_behind };
            let hub = Hub::of(&context)?;
            sign_again(&context, &hub).await?;
            let status = hub.call(Call::post(FINISH_AUTHORITY, &request)).await?;
            context::renew_certificate(&context).await?;
            note("unused join tokens are revoked: make new ones");
            status
        }
    };
    global.output.answer(&Answer::Authority(&status), || text(&status));
    Ok(Exit::Done)
}

/// Signs the revocations again that only the old authority proves: nobody would believe them any
/// more, and whoever they are about would be let in by servers that join later.
async fn sign_again(context: &Context, hub: &Hub) -> Result<(), Failure> {
    let identity = context.identity()?;
    for _ in 0..=REVOCATIONS_MAX.div_ceil(REVOCATIONS_SENT_MAX) {
        let status: AuthorityStatus = hub.call(Call::get(AUTHORITY)).await?;
        if status.trusts.len() < 2 || status.revocations.is_empty() {
            return Ok(());
        }
        let (mut exchange, mut signed_now) = (RevocationsExchange::default(), Vec::new());
        for signed in &status.revocations {
            let verified = signed.verify(identity.roots(), UnixTime::now());
            let (by, revocation) = verified.or_fail("revocation")?;
            note(&format!("signing again what {by} revoked: {}", revocation.key()));
            let again = revocation.once_more();
            let signed = SignedRevocation::sign(&identity, &again).or_fail("revocation")?;
            exchange.news.push(signed);
            signed_now.push(again);
        }
        let answer: RevocationsAnswer = hub.call(Call::post(REVOCATIONS, &exchange)).await?;
        let took = |revocation: &Revocation| {
            answer.has.get(&revocation.key()).is_some_and(|has| *has >= revocation.edition())
        };
        if !signed_now.iter().all(took) {
            break;
        }
    }
    Err(Failure::new("rejected", "the hub did not take the revocations that were signed again"))
}

fn text(status: &AuthorityStatus) -> String {
    let AuthorityStatus { issuer, trusts, servers, behind, apps, revocations } = status;
    let short = |print: &String| print.chars().take(SHOWN_DIGITS).collect::<String>();
    let mut text = format!("authority {} issues certificates\n", short(issuer));
    for old in trusts.iter().filter(|it| *it != issuer) {
        let done = servers - behind.len();
        text.push_str(&format!(
            "authority {} is trusted until `finish`: {done} of {servers} servers have followed\n",
            short(old)
        ));
    }
    if trusts.len() > 1 && !apps.is_empty() {
        let apps: Vec<String> = apps.iter().map(ToString::to_string).collect();
        text.push_str(&format!("to apply again before that: {}\n", apps.join(", ")));
    }
    if trusts.len() > 1 && !revocations.is_empty() {
        text.push_str("`finish` signs revocations again that only the old one proves\n");
    }
    if trusts.len() > 1 && behind.is_empty() && apps.is_empty() {
        text.push_str(&format!("next: {}\n", Command::AuthorityFinish));
    }
    text
}
