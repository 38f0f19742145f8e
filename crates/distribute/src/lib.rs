//! distribute.
