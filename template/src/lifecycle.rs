//! The state machine of the process: `starting → ready → draining → stopped`, never back.
//!
//! Probes, logs and the gauge `service_state` read this one state.

use std::time::Duration;

use garde::Validate;
use serde::Deserialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::config::value::millis;

#[derive(Clone, Copy, Debug, Deserialize, Validate)]
pub struct Config {
    #[serde(with = "humantime_serde")]
    #[garde(custom(millis(0, 300_000)))]
    pub grace_delay: Duration,
    #[serde(with = "humantime_serde")]
    #[garde(custom(millis(100, 3_600_000)))]
    pub drain_timeout: Duration,
    #[serde(with = "humantime_serde")]
    #[garde(custom(millis(10, 60_000)))]
    pub flush_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Starting,
    Ready,
    Draining,
    Stopped,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Starting, Self::Ready, Self::Draining, Self::Stopped];

    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// The state, shared: any clone reads it, `app` alone moves it on.
#[derive(Clone, Debug)]
pub struct Lifecycle(watch::Sender<State>);

impl Default for Lifecycle {
    fn default() -> Self {
        let lifecycle = Self(watch::Sender::new(State::Starting));
        lifecycle.publish();
        lifecycle
    }
}

impl Lifecycle {
    pub fn state(&self) -> State {
        *self.0.borrow()
    }

    /// Waits until the process is in `state` or beyond.
    pub async fn reached(&self, state: State) {
        // Fails only without a sender, and this is one.
        let _ = self.0.subscribe().wait_for(|now| *now >= state).await;
    }

    /// Moves on to `next` and tells whether that was a step forward; a step back is not taken.
    pub fn advance(&self, next: State) -> bool {
        let moved = self.0.send_if_modified(|state| {
            let forward = next > *state;
            if forward {
                *state = next;
            }
            forward
        });
        if moved {
            self.publish();
        }
        moved
    }

    fn publish(&self) {
        for state in State::ALL {
            let value = if state == self.state() { 1.0 } else { 0.0 };
            metrics::gauge!("service_state", "state" => state.name()).set(value);
        }
    }
}

/// SIGTERM and SIGINT, each as one request to stop.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Listens from here on; a signal that comes before [`Self::next`] is kept.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal and names it.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_only_moves_forward() {
        let lifecycle = Lifecycle::default();
        assert!(lifecycle.advance(State::Draining), "a stop may come before readiness");
        assert!(!lifecycle.advance(State::Ready));
        assert!(!lifecycle.advance(State::Draining));
        assert_eq!(lifecycle.state(), State::Draining);
    }
}
