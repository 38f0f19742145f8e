//! End-to-end tests: fleets of real processes of the production binary, each in its own directory
//! and on its own ports. Where to start reading: `trial.rs`, then any of the tests.

mod evidence;
mod prober;
mod trial;

mod bad_releases;
mod deltas;
mod fleet_only;
mod hub_away;
mod keys_change;
mod kill_switch;
mod leader_cut_off;
mod leader_killed;
mod limits;
mod membership;
mod mirror_dies;
mod power;
mod remove_app;
mod roles;
mod seen;
mod service_user;
mod steering;
mod two_apps;
mod unreachable;
