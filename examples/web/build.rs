//! Strips symbols: the demo unpacks this program forty times per release.

fn main() {
    println!("cargo:rustc-link-arg-bins=-s");
    println!("cargo:rerun-if-changed=build.rs");
}
