//! The configuration: layers, types, ranges and contradictions, all checked once at start.
//!
//! This is the only place that reads the environment. Each component owns the struct of its section.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use config::{Value, ValueKind};
use garde::Validate;
use serde::Deserialize;
use strum::{Display, EnumString};

use self::layers::{Values, nested, parse, read, siblings};

mod layers;
pub mod value;

const DEFAULT: &str = include_str!("../config/default.toml");
const DEVELOPMENT: &str = include_str!("../config/development.toml");

/// All sections. What each key means is written in `config/default.toml`.
#[derive(Debug, Deserialize, Validate)]
pub struct Config {
    #[garde(dive)]
    pub http: crate::http::Config,
    #[garde(dive)]
    pub admin: crate::server::AdminConfig,
    #[garde(dive)]
    pub log: crate::telemetry::logs::Config,
    #[garde(dive)]
    pub shutdown: crate::lifecycle::Config,
    #[garde(dive)]
    pub health: crate::health::Config,
    #[garde(dive)]
    pub jobs: crate::jobs::Config,
    #[garde(dive)]
    pub webhook: crate::webhook::Config,
    #[garde(dive)]
    pub cache: crate::cache::Config,
    //@ if postgres
    #[garde(dive)]
    pub database: crate::store::Config,
    //@ end
    //@ if redis
    #[garde(dive)]
    pub redis: crate::cache::connection::Config,
    //@ end
    //@ if rate_limit
    #[garde(dive)]
    pub rate_limit: crate::http::rate_limit::Config,
    //@ end
    //@ if otlp
    #[garde(dive)]
    pub otlp: crate::telemetry::otlp::Config,
    //@ end
}

/// Where the process runs, from `APP_ENV`; it names the file that is read and narrows the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum Environment {
    Development,
    Staging,
    Production,
}

/// One thing wrong with the configuration. It never carries the value, which may be a secret.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub key: String,
    pub source: String,
    pub allowed: String,
}

/// Every fault that was found, a line each.
#[derive(Debug, thiserror::Error)]
pub struct Faults(pub BTreeSet<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad configuration:")?;
        for Fault { key, source, allowed } in &self.0 {
            write!(f, "\n{key} ({source}): {allowed}")?;
        }
        Ok(())
    }
}

/// A configuration that passed all checks, and where each value came from.
pub struct Loaded {
    pub config: Config,
    pub environment: Environment,
    values: Values,
}

impl fmt::Debug for Loaded {
    /// Without the values as they were read, since some are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Loaded {
    /// The configuration in force, a line a key with its source. Secrets are left out.
    pub fn explain(&self) -> String {
        let line = |(key, value): (&String, &Value)| {
            let shown = match &value.kind {
                ValueKind::String(text) if is_secret(key) && !text.is_empty() => "[redacted]".to_owned(),
                ValueKind::String(text) => format!("{text:?}"),
                other => other.to_string(),
            };
            format!("{key} = {shown}  # {}\n", source(value))
        };
        self.values.iter().map(line).collect()
    }
}

/// Reads the process's environment and the files it points to. In development `.env` fills in what is unset.
///
/// # Errors
/// Every fault that was found, at once.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn load() -> Result<Loaded, Faults> {
    let mut faults = BTreeSet::new();
    let mut variables: BTreeMap<String, (String, String)> = BTreeMap::new();
    for (name, value) in std::env::vars_os() {
        let (Ok(name), value) = (name.into_string(), value.into_string()) else { continue };
        let source = format!("environment {name}");
        if let Ok(value) = value {
            variables.insert(name, (value, source));
            continue;
        }
        let own = || matches!(name.as_str(), "APP_ENV" | "APP_CONFIG_FILE").then(|| name.clone());
        if let Some(key) = aliased(&name).map(str::to_owned).or_else(|| spelled_out(&name)).or_else(own) {
            fault(&mut faults, &key, &source, "expected UTF-8");
        }
    }
    if variables.get("APP_ENV").is_none_or(|(value, _)| value == "development") {
        for entry in dotenvy::from_path_iter(".env").into_iter().flatten() {
            match entry {
                Ok((name, value)) => {
                    let source = format!(".env {name}");
                    variables.entry(name).or_insert((value, source));
                }
                Err(_) => fault(&mut faults, ".env", ".env", "expected lines of NAME=value"),
            }
        }
    }
    resolve(&variables, faults)
}

/// [`load`] with the variables handed in, each with its source.
fn resolve(
    variables: &BTreeMap<String, (String, String)>,
    mut faults: BTreeSet<Fault>,
) -> Result<Loaded, Faults> {
    let variable = |name: &str| variables.get(name).map(|(value, _)| value.as_str());
    let environment = variable("APP_ENV").map_or(Ok(Environment::Development), str::parse);
    let environment = environment.unwrap_or_else(|_| {
        let allowed = "expected development, staging or production";
        fault(&mut faults, "APP_ENV", "environment APP_ENV", allowed);
        Environment::Production
    });
    let mut values = parse("default", DEFAULT, &mut faults);
    let defaults = values.clone();
    if environment == Environment::Development {
        values.extend(parse("default in development", DEVELOPMENT, &mut faults));
    }
    values.extend(match variable("APP_CONFIG_FILE") {
        Some(path) => read(Path::new(path), true, &mut faults),
        None => read(Path::new(&format!("config/{environment}.toml")), false, &mut faults),
    });
    for alias in [true, false] {
        values.extend(variables.iter().filter_map(|(name, (value, source))| {
            let key = if alias { aliased(name)?.to_owned() } else { spelled_out(name)? };
            Some((key, Value::new(Some(source), value.as_str())))
        }));
    }
    values.retain(|key, value| {
        let known = defaults.contains_key(key);
        if !known {
            let allowed = format!("unknown key, expected {}", siblings(key, &defaults));
            fault(&mut faults, key, &source(value), &allowed);
        }
        known
    });
    let config = check(&mut values.clone(), &defaults, &mut faults);
    match config {
        Some(config) if faults.is_empty() => Ok(Loaded { config, environment, values }),
        _ => Err(Faults(faults)),
    }
}

/// Types, then ranges, then what contradicts each other. A value of the wrong type is reported and its
/// default taken instead, so that the faults behind it are found too.
fn check(values: &mut Values, defaults: &Values, faults: &mut BTreeSet<Fault>) -> Option<Config> {
    let original = values.clone();
    let report = |faults: &mut BTreeSet<Fault>, key: &str, allowed: &str| {
        let source = original.get(key).map_or_else(|| "default".to_owned(), source);
        fault(faults, key, &source, allowed);
    };
    for (key, value) in values.iter_mut() {
        let Some(default) = defaults.get(key) else { continue };
        if let Some(allowed) = value::mistyped(&default.kind, &value.kind) {
            report(faults, key, allowed);
            *value = default.clone();
        }
    }
    let config: Config = loop {
        match serde_path_to_error::deserialize(nested(values)) {
            Ok(config) => break config,
            Err(error) => {
                let key = error.path().to_string();
                report(faults, &key, &value::expected(error.inner()));
                // Once the default stands there, the same key can't fail again: the loop ends.
                match defaults.get(&key) {
                    Some(default) if values.get(&key) != Some(default) => values.insert(key, default.clone()),
                    _ => return None,
                };
            }
        }
    };
    if let Err(ranges) = config.validate() {
        for (path, error) in ranges.iter() {
            let path = path.to_string();
            // Of a list the key is named, not the entry.
            let key = path.split('[').next().unwrap_or(&path);
            let message = error.message();
            let bound =
                |limit: &str, words| message.strip_prefix(limit).map(|number| format!("{words} {number}"));
            let lowest = bound("lower than ", "expected at least");
            let allowed = lowest.or_else(|| bound("greater than ", "expected at most"));
            report(faults, key, allowed.as_deref().unwrap_or(message));
        }
    }
    // What was left at its default contradicts nothing: who shortens one delay need not name all others.
    let is_set = |key: &str| original.get(key) != defaults.get(key);
    for (key, allowed) in contradictions(&config).into_iter().filter(|(key, _)| is_set(key)) {
        report(faults, key, allowed);
    }
    Some(config)
}

/// Values that can't be meant together with another one, and what would have been right.
fn contradictions(config: &Config) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    let mut refuse = |wrong: bool, key, allowed| {
        if wrong {
            found.push((key, allowed));
        }
    };
    let (http, drain) = (&config.http, config.shutdown.drain_timeout);
    // What takes longer than the drain would be cut off at each deploy.
    refuse(http.request_timeout > drain, "http.request_timeout", "expected at most shutdown.drain_timeout");
    refuse(config.webhook.timeout > drain, "webhook.timeout", "expected at most shutdown.drain_timeout");
    refuse(
        config.webhook.forbids_own_url(),
        "webhook.url",
        "expected a public address, or webhook.allow_private_addresses = true",
    );
    let same_port = http.port != 0 && http.port == config.admin.port;
    refuse(same_port, "http.port", "expected another port than admin.port");
    refuse(same_port, "admin.port", "expected another port than http.port");
    //@ if postgres
    let too_long = config.database.acquire_timeout >= http.request_timeout;
    refuse(too_long, "database.acquire_timeout", "expected less than http.request_timeout");
    //@ end
    //@ if redis
    let too_long = config.redis.timeout >= http.request_timeout;
    refuse(too_long, "redis.timeout", "expected less than http.request_timeout");
    //@ end
    found
}

/// Variables that platforms set by custom, and the keys they stand for. `APP__…` wins over them.
fn aliased(variable: &str) -> Option<&'static str> {
    match variable {
        "PORT" => Some("http.port"),
        "RUST_LOG" => Some("log.filter"),
        //@ if postgres
        "DATABASE_URL" => Some("database.url"),
        //@ end
        //@ if redis
        "REDIS_URL" => Some("redis.url"),
        //@ end
        //@ if otlp
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("otlp.endpoint"),
        "OTEL_SERVICE_NAME" => Some("otlp.service_name"),
        //@ end
        _ => None,
    }
}

/// `APP__HTTP__PORT` is `http.port`.
fn spelled_out(variable: &str) -> Option<String> {
    Some(variable.strip_prefix("APP__")?.to_lowercase().replace("__", "."))
}

/// Whether a key holds what must not be shown. URLs count: they often carry a password or a token.
fn is_secret(key: &str) -> bool {
    matches!(key.rsplit('.').next(), Some("url" | "endpoint" | "secret" | "password" | "token"))
}

fn source(value: &Value) -> String {
    value.origin().unwrap_or("default").to_owned()
}

fn fault(faults: &mut BTreeSet<Fault>, key: &str, source: &str, allowed: &str) {
    faults.insert(Fault { key: key.to_owned(), source: source.to_owned(), allowed: allowed.to_owned() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_in_debug_output() {
        let variables = [
            ("APP__WEBHOOK__URL", "https://user:canary@host/canary?canary"),
            ("APP__WEBHOOK__SECRET", "whsec_canarycanarycanarycanarycanarycanary"),
        ];
        //@ if postgres
        let variables = [&variables[..], &[("DATABASE_URL", "postgres://user:canary@host/name")]].concat();
        //@ end
        //@ if redis
        let variables = [&variables[..], &[("REDIS_URL", "redis://:canary@host/0")]].concat();
        //@ end
        //@ if otlp
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:canary@host/canary");
        let variables = [&variables[..], &[endpoint]].concat();
        //@ end
        let variable =
            |(name, value): &(&str, &str)| ((*name).to_owned(), ((*value).to_owned(), String::new()));
        let loaded = resolve(&variables.iter().map(variable).collect(), BTreeSet::new()).expect("no fault");
        let shown = format!("{loaded:?}");
        assert!(shown.contains("redacted") && !shown.contains("canary"), "{shown}");
    }
}
