//! The service, as a library so that its tests can reach in. `app` wires it; imports point away from `app`.

pub mod app;
pub mod cache;
pub mod config;
pub mod health;
pub mod http;
pub mod jobs;
pub mod lifecycle;
pub mod queue;
pub mod server;
pub mod store;
pub mod task;
pub mod tasks;
pub mod telemetry;
pub mod webhook;
