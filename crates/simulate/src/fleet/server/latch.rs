//! The kill switch on a virtual server: which registers it knows, and what is latched on its disk.

use std::sync::Arc;

use cohort_core::kill::{KillScope, Position};

use super::{Kill, Server};
use crate::fleet::chaos::Mutation;

/// A violation that the tests look for: an acknowledged kill register is lost.
pub const FORGOTTEN: &str = "has forgotten a kill register that it acknowledged";

impl Server {
    /// Registers of a peer, or of a person. Latched before this returns.
    pub(crate) fn latch(&mut self, registers: &Kill) {
        if Arc::ptr_eq(&self.kill, registers) {
            return;
        }
        for (scope, reason) in registers.iter() {
            let position = registers.position(scope).expect("a register has a position");
            // Epochs count from 1 here: none is too far ahead at Unix time 0.
            if self.kill.accept(scope, position, 0) == Ok(true) {
                let own = Arc::make_mut(&mut self.kill);
                own.merge(scope.clone(), position, reason.clone());
            }
        }
        if !self.is_off(Mutation::KillLatch) {
            self.disk.kill = Arc::clone(&self.kill);
        }
    }

    /// A person throws the switch here, and is told that this server has it.
    pub(crate) fn throw(&mut self, register: &Kill) {
        self.latch(register);
        self.acknowledged = Arc::clone(&self.kill);
    }

    /// At a start: what was acknowledged is still there.
    pub(super) fn check_latch(&self) {
        for (scope, _) in self.acknowledged.iter() {
            let (then, now) = (self.acknowledged.position(scope), self.kill.position(scope));
            assert!(now >= then, "{} ms: {} {FORGOTTEN}: {then:?}", self.now_ms, self.id);
        }
    }
}

/// The register of a change of the switch, on its own.
pub(crate) fn register(scope: KillScope, position: Position, reason: &str) -> Kill {
    let mut register = Kill::default();
    Arc::make_mut(&mut register).merge(scope, position, reason.to_owned());
    register
}
