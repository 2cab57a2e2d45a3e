//! The state machine of the process: `starting → ready → draining → stopped`, never back.
//!
//! `State::next` is the whole transition table. Probes, logs and the gauge `service_state` all read this one state.

use std::time::Duration;

use serde::Deserialize;
use strum::{IntoStaticStr, VariantArray};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::value::millis;

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Config {
    #[serde(deserialize_with = "millis::<0, 300_000, _>")]
    pub grace_delay: Duration,
    #[serde(deserialize_with = "millis::<100, 3_600_000, _>")]
    pub drain_timeout: Duration,
    #[serde(deserialize_with = "millis::<10, 60_000, _>")]
    pub flush_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum State {
    Starting,
    Ready,
    Draining,
    Stopped,
}

/// What can change the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// All required dependencies are up.
    DependenciesUp,
    /// A required dependency was not up in time, or a background task ended during startup.
    StartFailed,
    /// A signal asked the process to stop.
    StopRequested,
    /// A task ended that should have run as long as the process.
    BackgroundEnded,
    /// All accepted work is finished, or the drain deadline has passed.
    DrainEnded,
}

impl State {
    /// The state that `trigger` leads to; None if it changes nothing.
    fn next(self, trigger: Trigger) -> Option<Self> {
        match (self, trigger) {
            (Self::Starting, Trigger::DependenciesUp) => Some(Self::Ready),
            // The service was never ready, so there is nothing to drain.
            (Self::Starting, Trigger::StartFailed | Trigger::StopRequested | Trigger::BackgroundEnded)
            | (Self::Draining, Trigger::DrainEnded) => Some(Self::Stopped),
            (Self::Ready, Trigger::StopRequested | Trigger::BackgroundEnded) => Some(Self::Draining),
            _ => None,
        }
    }
}

/// The shared state: every clone can read it, only `app` changes it.
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
        // Fails only once every sender is gone, and this is one.
        let _ = self.0.subscribe().wait_for(|now| *now >= state).await;
    }

    /// Applies `trigger` and returns the resulting state.
    pub fn apply(&self, trigger: Trigger) -> State {
        if let Some(next) = self.state().next(trigger) {
            self.0.send_replace(next);
            self.publish();
        }
        self.state()
    }

    fn publish(&self) {
        for &state in State::VARIANTS {
            let now = f64::from(state == self.state());
            metrics::gauge!("service_state", "state" => state.into_str()).set(now);
        }
    }
}

/// Stops a part of the service, first gracefully, then by force, and signals when it has ended.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Accept no new work, and finish what was accepted.
    pub drain: CancellationToken,
    //@ if postgres
    /// Start no more work that can wait for another process: it might not finish in time.
    pub stop_claiming: CancellationToken,
    //@ end
    /// Drop what is left.
    pub abort: CancellationToken,
    /// Cancelled by the part itself once it has ended, for whatever reason.
    pub ended: CancellationToken,
}

/// SIGTERM and SIGINT, which both ask the process to stop.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    /// Whether one has arrived.
    heard: bool,
}

impl StopSignals {
    /// Starts listening. A signal that arrives before [`Self::next`] is called is kept.
    pub fn listen() -> std::io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, heard: false })
    }

    /// Waits for the next signal and names it.
    pub async fn next(&mut self) -> &'static str {
        let signal = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        self.heard = true;
        signal
    }

    /// Waits for the second signal. If no signal caused the stop, the first one is still to come.
    pub async fn second(mut self) -> &'static str {
        if !self.heard {
            self.next().await;
        }
        self.next().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIGGERS: [Trigger; 5] = [
        Trigger::DependenciesUp,
        Trigger::StartFailed,
        Trigger::StopRequested,
        Trigger::BackgroundEnded,
        Trigger::DrainEnded,
    ];

    #[test]
    fn each_trigger_leads_where_the_table_says() {
        let row = |state: State| TRIGGERS.map(|trigger| state.next(trigger));
        let stopped = Some(State::Stopped);
        assert_eq!(row(State::Starting), [Some(State::Ready), stopped, stopped, stopped, None]);
        let draining = Some(State::Draining);
        assert_eq!(row(State::Ready), [None, None, draining, draining, None]);
        assert_eq!(row(State::Draining), [None, None, None, None, stopped]);
        assert_eq!(row(State::Stopped), [None; 5]);
    }

    #[test]
    fn no_trigger_leads_back() {
        for (state, trigger) in State::VARIANTS.iter().flat_map(|one| TRIGGERS.map(|trigger| (*one, trigger)))
        {
            assert!(state.next(trigger).is_none_or(|next| next > state), "{state:?} {trigger:?}");
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_a_state_is_woken_by_it_and_by_those_beyond() {
        let lifecycle = Lifecycle::default();
        let waiting = tokio::spawn({
            let lifecycle = lifecycle.clone();
            async move { lifecycle.reached(State::Ready).await }
        });
        assert_eq!(lifecycle.apply(Trigger::StopRequested), State::Stopped);
        waiting.await.expect("it is woken");
    }
}
