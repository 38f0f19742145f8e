//! Mechanisms that must not be written a second time, and names that must not appear.

use anyhow::Result;
use regex::Regex;

use super::tree::File;
use super::{Complaint, complaint};

/// A pattern that is refused.
#[derive(Debug)]
pub(crate) struct Ban {
    /// Short name, for output.
    pub name: &'static str,
    pub scope: Scope,
    pub pattern: &'static str,
    pub instead: &'static str,
    /// Paths (or prefixes) where it is allowed: its one home, and named exceptions.
    pub except: &'static [&'static str],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Production,
    Everything,
}

/// The one error chain, durable write, lock, metric and mirror client.
pub(crate) const BANS: &[Ban] = &[
    Ban {
        name: "base::chain",
        scope: Scope::Production,
        pattern: r"\b(error|err|cause|inner|source|deepest|next)\.source\(\)",
        instead: "`cohort_base::chain` walks an error's causes",
        except: &["crates/base/"],
    },
    Ban {
        name: "base::chain, at the edge",
        scope: Scope::Production,
        pattern: r"\b(error|err|e)(\.\w+\(\))?\.to_string\(\)",
        instead: "keep the error as `#[source]`; `cohort_base::chain` prints it where it leaves",
        except: &[
            "crates/base/",
            // Errors of `clap` and `toml`, drawn over several lines; their text is taken apart.
            "crates/cli/src/main.rs",
            "crates/cli/src/toml_keys.rs",
            // The answer of an object store, searched for XML.
            "crates/mirror/src/bucket/error.rs",
            // A violation or the answer of a script is a text.
            "crates/simulate/",
        ],
    },
    Ban {
        name: "base::durable",
        scope: Scope::Production,
        pattern: r"\.sync_all\(\)|\.sync_data\(\)|\bfsync\(|\bfdatasync\(",
        instead: "`cohort_base::durable` writes files and directories durably",
        // A part is written in place, unit by unit, for minutes.
        except: &["crates/base/", "crates/distribute/src/part.rs"],
    },
    Ban {
        name: "base::disk",
        scope: Scope::Production,
        pattern: r"\bfallocate\(|\bstatvfs\(|\bflock\(|\.try_lock_exclusive\(|\bTryLockError\b",
        instead: "`cohort_base::disk` reserves space and locks files",
        except: &["crates/base/"],
    },
    Ban {
        name: "parking_lot",
        scope: Scope::Production,
        pattern: r"\bPoisonError\b|std::sync::(\{[^}]*\b)?(Mutex|RwLock|Condvar)\b",
        instead: "`parking_lot` has locks that cannot be poisoned",
        except: &[],
    },
    Ban {
        name: "prometheus_client",
        scope: Scope::Production,
        pattern: r"# (TYPE|HELP) ",
        instead: "register the metric with `prometheus_client`, which writes the text format",
        except: &["crates/base/"],
    },
    Ban {
        name: "mirror client",
        scope: Scope::Production,
        pattern: r"\breqwest::(Client|ClientBuilder|Response|get)\b",
        instead: "the mirror client of `cohort_artifact` talks to mirrors",
        // Object stores are not mirrors: requests are signed, and objects are listed.
        except: &["crates/artifact/", "crates/mirror/src/bucket/http.rs"],
    },
    Ban {
        name: "hex",
        scope: Scope::Production,
        pattern: r"from_str_radix\(&\w+\[[^\n]*16\)|\{(byte)?:02x\}",
        instead: "`hex::encode` and `hex::decode`",
        except: &[],
    },
    Ban {
        name: "base::retry",
        scope: Scope::Production,
        pattern: r"\b(ExponentialBuilder|FibonacciBuilder|ConstantBuilder)\b",
        instead: "`cohort_base::retry` has the pauses between tries",
        except: &["crates/base/"],
    },
    Ban {
        name: "watch getters",
        scope: Scope::Production,
        pattern: r"-> watch::Receiver<[^\n]*\{\n[^\n]*\.clone\(\)",
        instead: "`subscribe` to the sender; a clone reports old changes again",
        except: &[],
    },
    // Not the compiler's `missing_docs`, which also requires a line on every field and variant:
    // most names and types say it all, and such lines were noise.
    Ban {
        name: "docs",
        scope: Scope::Production,
        pattern: r"(?mx) ^ (?: [\ \t]* | [^/\n]* [};{] ) \n
            (?: [\ \t]* \#\[ [^\n]* \] \n )* [\ \t]*
            pub\ (?: (?:async|const)\  )* (?:fn|struct|enum|trait|type)\ \w+",
        instead: "a public function or type has a doc comment: unit, range, errors, owner",
        except: &[],
    },
    Ban {
        name: "registry hosts",
        scope: Scope::Everything,
        pattern: r"\b(crates\.io|docs\.rs|pypi\.org|npmjs\.(com|org))\b",
        instead: "name the crate or package, not the host of a registry",
        except: &[],
    },
];

/// Where the patterns themselves are, and their tests.
const OWN: &str = "xtask/src/tidy/";

/// The violations in some files.
pub(crate) fn check(ban: &Ban, files: &[File]) -> Result<Vec<Complaint>> {
    let pattern = Regex::new(ban.pattern)?;
    let mut complaints = Vec::new();
    let in_scope = |file: &&File| {
        (ban.scope == Scope::Everything || file.is_production())
            && !file.path.starts_with(OWN)
            && !ban.except.iter().any(|path| file.path.starts_with(path))
    };
    for file in files.iter().filter(in_scope) {
        for found in pattern.find_iter(&file.text) {
            // The refused part is at the end of the match; the condition for it may come before.
            let line = file.text[..found.end()].matches('\n').count() + 1;
            let text = found.as_str().lines().next_back().unwrap_or_default().trim();
            let what = format!("`{text}`: {}", ban.instead);
            complaints.push(complaint(file.path.clone(), line, what));
        }
    }
    Ok(complaints)
}

#[cfg(test)]
#[path = "rules_test.rs"]
mod rules_test;
