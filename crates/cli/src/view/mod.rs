//! What commands print, as pure functions of what groups and the hub answered.

pub(crate) mod difference;
pub(crate) mod groups;
pub(crate) mod moving;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod status;
pub(crate) mod why;

#[cfg(test)]
pub(crate) mod sample;
