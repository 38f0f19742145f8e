//! Fenced writes of a group's own records: a late writer changes nothing.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{Compare, Op, Registry, RegistryError, Txn};
use crate::records::{Fenced, Stamp, decode, encode};
use crate::typed::get;

/// Compare-and-set attempts. A group's members write rarely, so more than a few lost races in a row
/// mean that something is wrong.
pub const ATTEMPTS_MAX: u32 = 8;

/// The outcome of a fenced write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum FencedPut {
    /// The record was written.
    Written {
        /// The revision of the write.
        revision: u64,
    },
    /// The same record is stored already.
    Unchanged,
    /// A newer record is stored: this writer is late and no longer leads.
    Late {
        /// The stored record's stamp.
        newer: Stamp,
    },
}

/// Writes a record unless a newer one is stored. An unreadable record is not overwritten: an
/// operator has to look at it.
///
/// # Errors
/// [`RegistryError`]; `Contended` after [`ATTEMPTS_MAX`] lost races.
pub async fn put_fenced<T>(
    registry: &dyn Registry,
    key: &str,
    record: &T,
) -> Result<FencedPut, RegistryError>
where
    T: Fenced + Serialize + DeserializeOwned + PartialEq + Sync,
{
    for _ in 0..ATTEMPTS_MAX {
        let mut seen_revision = 0;
        if let Some(pair) = get(registry, key).await? {
            let there: T = decode(&pair)?;
            if there == *record {
                return Ok(FencedPut::Unchanged);
            }
            if there.stamp() > record.stamp() {
                return Ok(FencedPut::Late { newer: there.stamp() });
            }
            seen_revision = pair.mod_revision;
        }
        let txn = Txn {
            compare: vec![Compare::unchanged_since(key, seen_revision)],
            then: vec![Op::put(key, encode(record))],
            otherwise: vec![],
        };
        match registry.txn(txn).await {
            Ok(answer) if answer.succeeded => {
                return Ok(FencedPut::Written { revision: answer.revision });
            }
            // Lost a race: read again.
            Ok(_) | Err(RegistryError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(RegistryError::Contended { key: key.to_owned(), attempts: ATTEMPTS_MAX })
}
