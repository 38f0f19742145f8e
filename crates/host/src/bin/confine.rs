//! `cohort confine` for this crate's tests, which cannot start the `cohort` binary.

fn main() {
    std::process::exit(cohort_host::confine::run());
}
