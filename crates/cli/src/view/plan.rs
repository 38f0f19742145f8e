//! `cohort rollout plan`: what would happen.
