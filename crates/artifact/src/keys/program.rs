//! A key that a program has: in a key service, a hardware module, an agent, or on another machine.
//!
//! ```toml
//! public_key = """
//! -----BEGIN PUBLIC KEY-----
//! …
//! -----END PUBLIC KEY-----
//! """
//! command = ["/usr/local/bin/sign-with-kms", "alias/cohort-targets"]
//! timeout_s = 60
//! ```
//!
//! The program gets the bytes to sign on standard input, and answers with the signature, raw, on
//! standard output: Ed25519, ECDSA P-256 with SHA-256 in ASN.1, or RSA-PSS with SHA-256.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use cohort_base::Cause;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tough::schema::key::Key;

/// Longest signature, in bytes: RSA with 8192 bits.
const SIGNATURE_BYTES_MAX: u64 = 1024;

/// Longest `timeout_s`: somebody may have to find the token to touch.
const TIMEOUT_S_MAX: u64 = 600;

/// What an Ed25519 key in `PUBLIC KEY` starts with; 32 bytes of key follow.
const ED25519_SPKI: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0];

/// Why a program did not sign.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("cannot run {program}")]
    Run {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} ended with {status}")]
    Failed { program: String, status: ExitStatus },
    #[error("{program} did not answer for {seconds} s")]
    Silent { program: String, seconds: u64 },
    #[error("{program} answered {bytes} bytes, which are no signature of its public_key")]
    WrongSignature { program: String, bytes: usize },
}

/// The program that signs.
#[derive(Debug, Clone)]
pub(super) struct Program {
    command: Vec<String>,
    timeout_s: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    public_key: String,
    command: Vec<String>,
    #[serde(default = "default_timeout_s")]
    timeout_s: u64,
}

fn default_timeout_s() -> u64 {
    60
}

impl Program {
    /// Reads the content of a key file.
    pub(super) fn parse(bytes: &[u8]) -> Result<(Key, Self), Cause> {
        let Content { public_key, command, timeout_s } = toml::from_slice(bytes)?;
        if !command.first().is_some_and(|program| program.starts_with('/')) {
            return Err("command: the program is given by an absolute path".into());
        }
        if !(1..=TIMEOUT_S_MAX).contains(&timeout_s) {
            return Err(format!("timeout_s: expected 1 to {TIMEOUT_S_MAX}").into());
        }
        let public =
            parse_public(public_key.trim()).map_err(|error| format!("public_key: {error}"))?;
        Ok((public, Self { command, timeout_s }))
    }

    pub(super) async fn sign(&self, public: &Key, bytes: &[u8]) -> Result<Vec<u8>, ProgramError> {
        let program = self.command[0].clone();
        let limit = Duration::from_secs(self.timeout_s);
        let (status, answer) = match tokio::time::timeout(limit, self.run(bytes)).await {
            Err(_) => return Err(ProgramError::Silent { program, seconds: self.timeout_s }),
            Ok(Err(source)) => return Err(ProgramError::Run { program, source }),
            Ok(Ok(ran)) => ran,
        };
        if !status.success() {
            return Err(ProgramError::Failed { program, status });
        }
        if !verifies(public, bytes, &answer) {
            return Err(ProgramError::WrongSignature { program, bytes: answer.len() });
        }
        Ok(answer)
    }

    /// Its standard error is this process's: that is where it asks for a touch, and complains.
    async fn run(&self, bytes: &[u8]) -> io::Result<(ExitStatus, Vec<u8>)> {
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (mut input, output) = (child.stdin.take(), child.stdout.take());
        let write = async {
            if let Some(input) = &mut input {
                // A program that does not read everything gives itself away by its signature.
                let _ = input.write_all(bytes).await;
            }
            drop(input.take());
        };
        let read = async {
            let mut answer = Vec::new();
            if let Some(output) = output {
                output.take(SIGNATURE_BYTES_MAX + 1).read_to_end(&mut answer).await?;
            }
            Ok::<_, io::Error>(answer)
        };
        let ((), answer) = tokio::join!(write, read);
        let answer = answer?;
        Ok((child.wait().await?, answer))
    }
}

/// A public key in PEM, as `openssl pkey -pubout` writes it; for Ed25519 also in hexadecimal.
fn parse_public(text: &str) -> Result<Key, Cause> {
    let ed25519 = pem::parse(text).ok().and_then(|block| {
        let key = block.contents().strip_prefix(&ED25519_SPKI)?;
        (key.len() == 32).then(|| hex::encode(key))
    });
    Ok(ed25519.as_deref().unwrap_or(text).parse::<Key>()?)
}

fn verifies(public: &Key, bytes: &[u8], signature: &[u8]) -> bool {
    let (algorithm, key): (&'static dyn VerificationAlgorithm, &[u8]) = match public {
        Key::Ed25519 { keyval, .. } => (&ED25519, &keyval.public),
        Key::Ecdsa { keyval, .. } | Key::EcdsaOld { keyval, .. } => {
            (&ECDSA_P256_SHA256_ASN1, &keyval.public)
        }
        Key::Rsa { keyval, .. } => (&RSA_PSS_2048_8192_SHA256, &keyval.public),
    };
    UnparsedPublicKey::new(algorithm, key).verify(bytes, signature).is_ok()
}

#[cfg(test)]
#[path = "program_test.rs"]
mod program_test;
