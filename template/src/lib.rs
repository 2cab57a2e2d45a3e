//! The service, as a library so that tests can reach in. `app` wires the modules; no other module imports it.

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
