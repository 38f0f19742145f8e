//! TCP checks: something accepts, and says what is expected.

use std::time::Duration;

use cohort_core::policy::TcpProbe;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::check::{ANSWER_BYTES_MAX, CheckFailure, Stream, quoted, until};

/// Sends and reads what the check says, within most of `limit`.
pub(crate) async fn look(
    mut stream: Stream,
    probe: &TcpProbe,
    limit: Duration,
) -> Result<(), CheckFailure> {
    let failed = |error: std::io::Error| CheckFailure::from_io(&error);
    if let Some(text) = &probe.send {
        stream.write_all(text.as_bytes()).await.map_err(failed)?;
    }
    let Some(expected) = &probe.expect else { return Ok(()) };
    let mut answer = Vec::new();
    let has_it = |answer: &[u8]| String::from_utf8_lossy(answer).contains(expected.as_str());
    let read = async {
        let mut part = [0; 4096];
        while answer.len() < ANSWER_BYTES_MAX && !has_it(&answer) {
            match stream.read(&mut part).await.map_err(failed)? {
                0 => break,
                bytes => answer.extend_from_slice(&part[..bytes]),
            }
        }
        Ok(())
    };
    let read = until(limit, read).await;
    if has_it(&answer) {
        return Ok(());
    }
    if answer.is_empty() {
        read.unwrap_or(Err(CheckFailure::TimedOut))?;
        return Err(CheckFailure::Reset);
    }
    let (found, expected) = (quoted(&answer), expected.clone());
    Err(CheckFailure::WrongAnswer { found, expected })
}
