//! The state machine of the process: `starting → ready → draining → stopped`, never back.
//!
//! `State::after` is all of it. Probes, logs and the gauge `service_state` read this one state.

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

/// What moves the process on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// All that the service can't do without is there.
    DependenciesUp,
    /// It was not in time, or can't be used.
    StartFailed,
    /// A signal.
    StopAsked,
    /// A task ended that must last as long as the process.
    TaskEnded,
    /// All that was taken is finished, or the time for it is over.
    DrainEnded,
}

impl State {
    /// Where `trigger` leads from here; None where it changes nothing.
    fn after(self, trigger: Trigger) -> Option<Self> {
        match (self, trigger) {
            (Self::Starting, Trigger::DependenciesUp) => Some(Self::Ready),
            // Nothing was taken yet, so there is nothing to drain.
            (Self::Starting, Trigger::StartFailed | Trigger::StopAsked | Trigger::TaskEnded)
            | (Self::Draining, Trigger::DrainEnded) => Some(Self::Stopped),
            (Self::Ready, Trigger::StopAsked | Trigger::TaskEnded) => Some(Self::Draining),
            _ => None,
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

    /// Moves on, and returns where to.
    pub fn take(&self, trigger: Trigger) -> State {
        if let Some(next) = self.state().after(trigger) {
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

/// What stops a part of the service, in two steps, and tells when it has.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Take no more, and finish what was taken.
    pub drain: CancellationToken,
    //@ if postgres
    /// Nor begin any of that which keeps: it might not end in time.
    pub last_call: CancellationToken,
    //@ end
    /// Drop what is left.
    pub abort: CancellationToken,
    /// Cancelled by the part itself once it has ended, in whatever way.
    pub ended: CancellationToken,
}

/// SIGTERM and SIGINT, each as one request to stop.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    /// Whether one has come.
    heard: bool,
}

impl StopSignals {
    /// Listens from here on; a signal that comes before [`Self::next`] is kept.
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

    /// Waits for the second signal: the first may come after a stop that no signal has asked for.
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
        Trigger::StopAsked,
        Trigger::TaskEnded,
        Trigger::DrainEnded,
    ];

    #[test]
    fn each_trigger_leads_where_the_table_says() {
        let row = |state: State| TRIGGERS.map(|trigger| state.after(trigger));
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
            assert!(state.after(trigger).is_none_or(|next| next > state), "{state:?} {trigger:?}");
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_a_state_is_woken_by_it_and_by_those_beyond() {
        let lifecycle = Lifecycle::default();
        let waiting = tokio::spawn({
            let lifecycle = lifecycle.clone();
            async move { lifecycle.reached(State::Ready).await }
        });
        assert_eq!(lifecycle.take(Trigger::StopAsked), State::Stopped);
        waiting.await.expect("it is woken");
    }
}
