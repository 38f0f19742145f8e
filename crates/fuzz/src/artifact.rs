//! Artifacts and the metadata that signs them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cohort_artifact::client::{ClientLimits, MirrorClient};
use cohort_artifact::{
    ChannelPointer, DeltaInput, Digest, Inspection, Keys, Lifetimes, Manifest, Method,
    PublishRequest, Repository, TrustOptions, TrustedRepository, UnitHasher, UnitHashes,
    apply_delta, digest_of_bytes, inspect_tarball, root_of_units,
};
use cohort_base::golden::round_trip;
use cohort_core::release::{Release, Rollback};
use cohort_host::fuzzing::unpack;
use tempfile::NamedTempFile;

use crate::script::{Script, block_on, scratch};

/// Manifests and channels: what is read is written the same.
pub(crate) fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let again = Manifest::parse(&manifest.to_bytes());
        assert_eq!(again.expect("what was written is read"), manifest);
    }
    if let Ok(pointer) = ChannelPointer::parse(bytes) {
        let again = ChannelPointer::parse(&serde_json::to_vec(&pointer).expect("texts are JSON"));
        assert_eq!(again.expect("what was written is read"), pointer);
    }
    round_trip::<Release>(bytes);
}

/// Bytes and entries that the fuzzed artifact may unpack to, by its manifest.
const UNPACKED_BYTES: u64 = 1 << 20;
const ENTRIES: u32 = 64;

/// An archive. What the publisher accepts, the host unpacks; neither writes outside the directory,
/// nor more than is signed.
pub(crate) fn archive(bytes: &[u8]) {
    let folder = scratch();
    let (artifact, outside) = (folder.path().join("artifact"), folder.path().join("outside"));
    fs::write(&artifact, bytes).expect("a writable directory");
    fs::write(&outside, "untouched").expect("a writable directory");
    let inspected = inspect_tarball(&artifact)
        .ok()
        .filter(|it| it.unpacked_bytes <= UNPACKED_BYTES && it.entries <= ENTRIES);
    let release = Release {
        version: "1.0.0".parse().expect("a version"),
        platform: "linux/amd64".parse().expect("a platform"),
        artifact: digest_of_bytes(bytes),
        manifest: digest_of_bytes(b""),
        length: bytes.len() as u64,
        unpacked_bytes: inspected.as_ref().map_or(UNPACKED_BYTES, |it| it.unpacked_bytes),
        entries: inspected.as_ref().map_or(ENTRIES, |it| it.entries),
        rollback: Rollback::Revert,
    };
    let part = folder.path().join("part");
    let unpacked = unpack(&artifact, &release, &part);
    if let Some(Inspection { package_file, .. }) = inspected {
        let text = match &unpacked {
            Ok(text) => text.clone(),
            Err(error) => {
                // Text is what publishing asks of the file later.
                let not_text = |bytes: &Vec<u8>| std::str::from_utf8(bytes).is_err();
                let expected = package_file.as_ref().is_some_and(not_text);
                assert!(expected, "the publisher would accept it: {error}");
                None
            }
        };
        if unpacked.is_ok() {
            assert_eq!(text.map(String::into_bytes), package_file);
        }
    }
    let mut found = Found::default();
    if part.exists() {
        found.walk(&part);
    }
    assert!(found.bytes <= release.unpacked_bytes, "{found:?}");
    assert!(found.entries <= u64::from(release.entries) + found.folders, "{found:?}");
    let mut beside: Vec<_> = names(folder.path());
    beside.retain(|name| name != "part");
    assert_eq!(beside, ["artifact", "outside"]);
    assert_eq!(fs::read(&outside).expect("it is there"), b"untouched");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a directory");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// What was unpacked.
#[derive(Debug, Default)]
struct Found {
    bytes: u64,
    entries: u64,
    /// Directories, which an archive may leave out.
    folders: u64,
}

impl Found {
    fn walk(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("an entry");
            self.entries += 1;
            let mode = metadata.mode();
            assert!(metadata.is_symlink() || mode & 0o7022 == 0, "{}: {mode:o}", path.display());
            if metadata.is_dir() {
                self.folders += 1;
                self.walk(&path);
            } else if metadata.is_file() {
                // Hard links share their bytes.
                self.bytes += metadata.len() / metadata.nlink();
            } else {
                assert!(metadata.is_symlink(), "{}", path.display());
                let target = fs::read_link(&path).expect("a link");
                assert!(target.is_relative(), "{} -> {}", path.display(), target.display());
            }
        }
    }
}

/// The archives between which deltas are fuzzed.
const OLD: &[u8] = &[7; 3000];

/// How the result is compressed: not at all, or with the library that is linked in.
fn method(compressed: bool) -> Method {
    let plain = || Method::known("segments-1").expect("the plain method");
    let zstd = |version| Method::known(&format!("segments-1+zstd-{version}-3"));
    if compressed { (10_500..10_800).find_map(zstd).unwrap_or_else(plain) } else { plain() }
}

/// A delta: it gives the signed artifact, or fails; it never writes more than its length.
pub(crate) fn delta(bytes: &[u8]) {
    let folder = scratch();
    let (base, patch) = (folder.path().join("base"), folder.path().join("delta"));
    fs::write(&base, OLD).expect("a writable directory");
    let mut script = Script::new(bytes);
    let compressed = script.is_set();
    let new: Vec<u8> = (0..200 + script.below(50)).collect();
    let length = new.len() as u64;
    let mut file = File::create_new(&patch).expect("a new file");
    if script.is_set() {
        file.write_all(script.rest()).expect("a writable file");
    } else {
        // With the right header and lengths, records are reached.
        let lengths = [OLD.len() as u64, length].map(u64::to_le_bytes).concat();
        file.write_all(b"COHDELT1").expect("a writable file");
        file.write_all(&lengths).expect("a writable file");
        file.write_all(script.rest()).expect("a writable file");
    }
    let method = method(compressed);
    let input = DeltaInput {
        base: &base,
        delta: &File::open(&patch).expect("a file"),
        method,
        root: &digest_of_bytes(&new),
        length,
        scratch: folder.path(),
        scratch_bytes_max: 1 << 20,
        stopped: &|| false,
    };
    let mut out = Vec::new();
    let applied = apply_delta(&input, &mut out);
    assert!(out.len() as u64 <= length, "{} bytes", out.len());
    if let Ok(hashes) = applied {
        assert_eq!(out, new);
        assert_eq!(hashes.length(), length);
    }
}

/// Unit hashes: they merge into one root, and are accepted for no other.
pub(crate) fn unit_hashes(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let length = script.near(1 << 16);
    let hashes = script.rest();
    let other: Digest = digest_of_bytes(b"another");
    assert!(UnitHashes::parse_for(hashes, &other, length).is_err());
    let Some(root) = root_of_units(hashes) else { return };
    if let Ok(parsed) = UnitHashes::parse_for(hashes, &root, length) {
        assert_eq!(parsed.to_bytes(), hashes);
        let (start, bytes) = parsed.span(parsed.count() - 1).expect("the last unit");
        assert_eq!(start + bytes as u64, length);
        assert!(parsed.span(parsed.count()).is_err());
    }
}

/// A repository with one release, made once per process.
struct Made {
    /// The files of the repository before the release, by path.
    empty: Vec<(String, Vec<u8>)>,
    root: Vec<u8>,
    bundle: Vec<u8>,
    /// What a publisher uploads for the release and the key change, by path.
    uploads: Vec<(String, Vec<u8>)>,
}

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| block_on(make()))
}

async fn make() -> Made {
    let folder = scratch();
    let keys = Keys::generate().expect("keys");
    let dir = folder.path().join("repository");
    let created = Repository::create(&dir, &keys, Lifetimes::default()).await;
    let repository = created.expect("a repository");
    let empty = contents(&dir);
    let source = folder.path().join("source");
    fs::create_dir(&source).expect("a writable directory");
    fs::write(source.join("app"), "app").expect("a writable directory");
    let id = |text: &str| text.parse().expect("a name");
    let platform = "linux/amd64".parse().expect("a platform");
    let version = "1.0.0".parse().expect("a version");
    let mut request = PublishRequest::new(&source, id("web"), version, platform);
    request.channel = Some("stable".parse().expect("a channel"));
    repository.publish(&keys, &request).await.expect("a release");
    let root = fs::read(dir.join("metadata/root.json")).expect("a root");
    let reader = open(&root, &folder.path().join("store"), Some(&dir)).await;
    reader.refresh().await.expect("a whole repository");
    let bundle = reader.bundle().expect("read just now");
    let mut uploads: Vec<_> = files(&dir, &dir)
        .into_iter()
        .filter(|path| {
            !empty.iter().any(|(known, _)| known == path) || path.ends_with("timestamp.json")
        })
        .map(|path| (path.clone(), fs::read(dir.join(path)).expect("a file")))
        .collect();
    let change = repository.signed_change().expect("a change");
    uploads.push((Repository::KEY_CHANGE.to_owned(), change));
    Made { empty, root, bundle, uploads }
}

async fn open(root: &[u8], store: &Path, mirror: Option<&PathBuf>) -> TrustedRepository {
    let options = TrustOptions {
        root: root.to_vec(),
        store: store.to_owned(),
        mirrors: mirror
            .map(|dir| cohort_artifact::Mirror::Folder(dir.clone()))
            .into_iter()
            .collect(),
        client: MirrorClient::new(ClientLimits::default()).expect("a client"),
    };
    TrustedRepository::open(options).await.expect("a root and a writable directory")
}

fn files(dir: &Path, root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(files(&path, root));
        } else if let Ok(relative) = path.strip_prefix(root) {
            all.push(relative.to_string_lossy().into_owned());
        }
    }
    all.sort();
    all
}

fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |path: String| (path.clone(), fs::read(dir.join(path)).expect("a file"));
    files(dir, dir).into_iter().map(read).collect()
}

/// Signed metadata from a peer or from the disk, altered: only what is signed is believed.
pub(crate) fn bundle(bytes: &[u8]) {
    let made = made();
    let mut script = Script::new(bytes);
    let how = script.below(4);
    let rest = if how == 0 { script.rest().to_vec() } else { script.patch(&made.bundle) };
    let folder = scratch();
    if how == 1 {
        // The reader's own file.
        let state =
            [br#"{"schema":1,"anchor_sha256":"","bundle":"#, rest.as_slice(), b"}"].concat();
        fs::create_dir_all(folder.path()).expect("a directory");
        fs::write(folder.path().join("trusted.json"), state).expect("a writable directory");
        let options = TrustOptions {
            root: if script.is_set() { rest } else { made.root.clone() },
            store: folder.path().to_owned(),
            mirrors: Vec::new(),
            client: MirrorClient::new(ClientLimits::default()).expect("a client"),
        };
        drop(block_on(TrustedRepository::open(options)));
        return;
    }
    let reader = block_on(open(&made.root, folder.path(), None));
    if block_on(reader.accept_bundle(&rest)).is_ok() {
        // White space and the order of keys are not signed.
        let signed = |bytes: &[u8]| serde_json::from_slice(bytes).map(parse_texts).expect("JSON");
        let believed = reader.bundle().expect("accepted just now");
        assert_eq!(signed(&believed), signed(&made.bundle), "forged");
    }
}

/// JSON in texts of JSON, without the signatures: more may be there than count.
fn parse_texts(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::String(text) => {
            let Ok(mut inner) = serde_json::from_str::<Value>(&text) else {
                return Value::String(text);
            };
            inner["signed"].take()
        }
        Value::Array(all) => Value::Array(all.into_iter().map(parse_texts).collect()),
        Value::Object(all) => {
            Value::Object(all.into_iter().map(|(key, value)| (key, parse_texts(value))).collect())
        }
        other => other,
    }
}

/// A file that a publisher uploads to the hub, altered or under another name.
pub(crate) fn upload(bytes: &[u8]) {
    let made = made();
    let folder = scratch();
    let dir = folder.path().join("repository");
    for (path, content) in &made.empty {
        let target = dir.join(path);
        fs::create_dir_all(target.parent().expect("below")).expect("a writable directory");
        fs::write(target, content).expect("a writable directory");
    }
    let repository = Repository::open(&dir).expect("a repository");
    let mut script = Script::new(bytes);
    while !script.is_over() {
        let nth = usize::from(script.byte()) % made.uploads.len();
        let (path, content) = &made.uploads[nth];
        let (alter, length) = (script.below(4), usize::from(script.byte()));
        let mut piece = Script::new(script.take(length));
        let path = match alter {
            1 => String::from_utf8_lossy(piece.rest()).into_owned(),
            _ => path.clone(),
        };
        let content = match alter {
            2 => piece.patch(content),
            3 => piece.rest().to_vec(),
            _ => content.clone(),
        };
        let mut file: NamedTempFile = repository.incoming().expect("a writable directory");
        file.write_all(&content).expect("a writable file");
        drop(block_on(repository.receive(&path, file)));
    }
    // Nothing outside, and what is inside is what was published, byte by byte.
    assert_eq!(names(folder.path()), ["repository"]);
    for path in files(&dir, &dir).iter().filter(|path| !path.starts_with('.')) {
        let known = made.uploads.iter().any(|(name, _)| name == path)
            || made.empty.iter().any(|(known, _)| known == path);
        assert!(known, "{path}");
    }
}

/// Hashes of what the fuzzed subscription sends.
pub(crate) fn hashed(bytes: &[u8]) -> UnitHashes {
    let mut hasher = UnitHasher::default();
    hasher.update(bytes);
    hasher.finish().expect("not empty")
}
