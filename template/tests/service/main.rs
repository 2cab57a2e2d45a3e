//! The service from outside: each test starts the real binary and talks to it as clients, proxies and
//! orchestrators do. One file per subject, but a single test program, so that it is linked only once.
//!
//! A test waits for a condition, with a deadline; it sleeps only where time itself has to pass.

#![allow(unreachable_pub, reason = "modules of a test program share what they like")]

mod api;
mod app;
mod configuration;
mod contract;
mod deploy;
mod documents;
mod health;
mod http2;
mod jobs;
mod lifecycle;
mod logs;
mod malformed;
mod metrics;
mod misconfiguration;
//@ if otlp
mod otlp;
//@ end
//@ if postgres
mod outages;
//@ end
mod pages;
//@ if postgres
mod postgres;
//@ end
mod problems;
mod process;
mod protection;
mod proxy;
//@ if rate_limit
mod rate_limit;
//@ end
mod receiver;
//@ if redis
mod redis;
//@ end
//@ if postgres
mod schema;
//@ end
mod secrets;
mod tls;
mod wire;
