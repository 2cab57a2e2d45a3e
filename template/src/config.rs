//! The configuration: layers, types, ranges and contradictions, all checked once at start. Nothing else reads the
//! environment. Each component owns the struct of its section.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use config::{Value, ValueKind};
use garde::Validate;
use serde::Deserialize;
use strum::{Display, EnumString};

use self::layers::{Values, nested, parse, siblings};

mod layers;
pub mod value;

const DEFAULT: &str = include_str!("../config/default.toml");
const DEVELOPMENT: &str = include_str!("../config/development.toml");

/// All sections. `config/default.toml` explains every key.
#[derive(Debug, Deserialize, Validate)]
pub struct Config {
    #[garde(dive)]
    pub http: crate::http::Config,
    #[garde(skip)]
    pub admin: crate::server::AdminConfig,
    #[garde(dive)]
    pub log: crate::telemetry::logs::Config,
    #[garde(skip)]
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
    #[garde(skip)]
    pub rate_limit: crate::http::rate_limit::Config,
    //@ end
    //@ if otlp
    #[garde(dive)]
    pub otlp: crate::telemetry::otlp::Config,
    //@ end
}

/// Where the process runs, from `APP_ENV`. It selects the configuration file and, in development, other defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum Environment {
    Development,
    Staging,
    Production,
}

/// All faults found, each with its key, its source and what is allowed, but not the value, which may be a secret.
#[derive(Debug, thiserror::Error)]
#[error("bad configuration:\n{}", .0.iter().cloned().collect::<Vec<_>>().join("\n"))]
pub struct Faults(BTreeSet<String>);

/// A configuration that passed all checks.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub environment: Environment,
    /// One line per key, with its source. Secrets are redacted.
    pub explained: String,
}

/// Reads the process's environment and the files it points to. In development `.env` fills in what is unset.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn load() -> Result<Loaded, Faults> {
    let mut faults = BTreeSet::new();
    let mut variables = Values::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        let source = format!("environment {name}");
        let own = || matches!(name.as_str(), "APP_ENV" | "APP_CONFIG_FILE").then(|| name.clone());
        if let Ok(value) = value.into_string() {
            variables.insert(name, Value::new(Some(&source), value));
        } else if let Some(key) = key_of(&name).or_else(own) {
            fault(&mut faults, &key, &source, "expected UTF-8");
        }
    }
    if variables.get("APP_ENV").is_none_or(|value| value.to_string() == "development") {
        // Read in one go: line by line, a directory of this name would yield the same error forever.
        let dotenv = std::fs::read(".env").unwrap_or_else(|why| {
            if why.kind() != ErrorKind::NotFound {
                let allowed = format!("expected a file that can be read: {}", why.kind());
                fault(&mut faults, ".env", ".env", &allowed);
            }
            Vec::new()
        });
        for entry in dotenvy::from_read_iter(&*dotenv) {
            match entry {
                Ok((name, value)) if name == "APP_ENV" && value != "development" => {
                    fault(&mut faults, "APP_ENV", ".env APP_ENV", "expected development, where .env is read");
                }
                Ok((name, value)) => {
                    let value = Value::new(Some(&format!(".env {name}")), value);
                    variables.entry(name).or_insert(value);
                }
                Err(_) => fault(&mut faults, ".env", ".env", "expected lines of NAME=value"),
            }
        }
    }
    resolve(&variables, faults)
}

/// [`load`], with the variables passed in by name.
fn resolve(variables: &Values, mut faults: BTreeSet<String>) -> Result<Loaded, Faults> {
    let variable = |name: &str| variables.get(name).map(ToString::to_string);
    let environment = variable("APP_ENV").map_or(Ok(Environment::Development), |name| name.parse());
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
    let named = variable("APP_CONFIG_FILE");
    let path = named.clone().unwrap_or_else(|| format!("config/{environment}.toml"));
    match std::fs::read_to_string(&path).map_err(|error| error.kind()) {
        Ok(text) => values.extend(parse(&path, &text, &mut faults)),
        Err(ErrorKind::NotFound) if named.is_none() => {}
        Err(why) => {
            let key = if named.is_some() { "APP_CONFIG_FILE" } else { "(file)" };
            fault(&mut faults, key, &path, &format!("expected a file that can be read: {why}"));
        }
    }
    let mut layered: Vec<_> = variables.iter().collect();
    // The environment overrides `.env`, and within each, `APP__` variables override those that platforms set.
    layered.sort_by_key(|(name, value)| (!source(value).starts_with(".env "), name.starts_with("APP__")));
    values.extend(layered.into_iter().filter_map(|(name, value)| Some((key_of(name)?, value.clone()))));
    // Ignore a section without keys, such as one where all are commented out.
    let is_section = |name: &String| defaults.keys().any(|key| key.split('.').next() == Some(name));
    values.retain(|key, value| !(matches!(value.kind, ValueKind::Table(_)) && is_section(key)));
    for (key, value) in values.iter().filter(|(key, _)| !defaults.contains_key(*key)) {
        let allowed = format!("unknown key, expected {}", siblings(key, &defaults));
        fault(&mut faults, key, source(value), &allowed);
    }
    let config = check(&values, &defaults, &mut faults).filter(|_| faults.is_empty());
    let explained = values.iter().map(explained).collect();
    config.map(|config| Loaded { config, environment, explained }).ok_or(Faults(faults))
}

fn explained((key, value): (&String, &Value)) -> String {
    let shown = match &value.kind {
        ValueKind::String(text) if text.is_empty() || !is_secret(key) => format!("{text:?}"),
        _ if is_secret(key) => "[redacted]".to_owned(),
        ValueKind::Array(values) => format!("{:?}", values.iter().map(Value::to_string).collect::<Vec<_>>()),
        other => other.to_string(),
    };
    format!("{key} = {shown}  # {}\n", source(value))
}

/// Checks types, ranges, then contradictions. Defaults stand in for wrong values, so that all faults are found.
fn check(original: &Values, defaults: &Values, faults: &mut BTreeSet<String>) -> Option<Config> {
    let mut values = original.clone();
    let mut report = |key: &str, allowed: &str| {
        fault(faults, key, original.get(key).map_or("default", source), allowed);
    };
    for (key, value) in &mut values {
        let Some(default) = defaults.get(key) else { continue };
        if let (ValueKind::Array(_), ValueKind::String(text)) = (&default.kind, &value.kind) {
            // The form in which variables hold lists.
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            value.kind = parts.collect::<Vec<_>>().into();
        }
        if let Some(allowed) = value::mistyped(&default.kind, &value.kind) {
            report(key, allowed);
            *value = default.clone();
        }
    }
    // For a list, name the key and not the entry.
    let key_at = |path: String| path.split('[').next().unwrap_or(&path).to_owned();
    let config: Config = loop {
        match serde_path_to_error::deserialize(nested(&values)) {
            Ok(config) => break config,
            Err(error) => {
                let key = key_at(error.path().to_string());
                report(&key, &value::expected(error.inner()));
                // With its default in place the same key can't fail again, so the loop ends.
                match defaults.get(&key) {
                    Some(default) if values.get(&key) != Some(default) => values.insert(key, default.clone()),
                    _ => return None,
                };
            }
        }
    };
    if let Err(ranges) = config.validate() {
        for (path, error) in ranges.iter() {
            report(&key_at(path.to_string()), error.message());
        }
    }
    let wrong_already = faults.clone();
    contradictions(&config, |wrong, key, allowed| {
        // Neither a default that stands in for a wrong value nor a value left at its default counts as a
        // contradiction: whoever shortens one timeout need not set all the others.
        let stands_in = |key: &str| wrong_already.iter().any(|fault| fault.starts_with(&format!("{key} (")));
        let stands_in = stands_in(key) || allowed.split([' ', ',']).any(stands_in);
        if wrong && !stands_in && original.get(key) != defaults.get(key) {
            fault(faults, key, original.get(key).map_or("default", source), allowed);
        }
    });
    Some(config)
}

/// Refuses values that contradict one another, and says what is expected.
fn contradictions(config: &Config, mut refuse: impl FnMut(bool, &str, &str)) {
    let (http, drain) = (&config.http, config.shutdown.drain_timeout);
    // Anything that takes longer than the drain would be cut off at each deployment.
    refuse(http.request_timeout > drain, "http.request_timeout", "expected at most shutdown.drain_timeout");
    refuse(config.webhook.timeout > drain, "webhook.timeout", "expected at most shutdown.drain_timeout");
    let allowed = "expected a public address, or webhook.allow_private_addresses = true";
    refuse(config.webhook.forbids_own_url(), "webhook.url", allowed);
    let same_port = http.port != 0 && http.port == config.admin.port;
    refuse(same_port, "http.port", "expected a port other than admin.port");
    refuse(same_port, "admin.port", "expected a port other than http.port");
    //@ if postgres
    let too_long = config.database.acquire_timeout >= http.request_timeout;
    refuse(too_long, "database.acquire_timeout", "expected less than http.request_timeout");
    //@ end
    //@ if redis
    let too_long = config.redis.timeout >= http.request_timeout;
    refuse(too_long, "redis.timeout", "expected less than http.request_timeout");
    //@ end
}

/// The key that a variable sets: `APP__HTTP__PORT` is `http.port`. Some names are conventions of platforms.
fn key_of(variable: &str) -> Option<String> {
    let key = match variable {
        "PORT" => "http.port",
        "RUST_LOG" => "log.filter",
        //@ if postgres
        "DATABASE_URL" => "database.url",
        //@ end
        //@ if redis
        "REDIS_URL" => "redis.url",
        //@ end
        //@ if otlp
        "OTEL_EXPORTER_OTLP_ENDPOINT" => "otlp.endpoint",
        "OTEL_SERVICE_NAME" => "otlp.service_name",
        //@ end
        _ => &variable.strip_prefix("APP__")?.to_lowercase().replace("__", "."),
    };
    Some(key.to_owned())
}

/// Whether a key holds a secret, judging by its name. URLs count: they often carry a password or a token.
fn is_secret(key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or(key);
    ["url", "endpoint", "secret", "password", "token", "key", "credential"].iter().any(|it| name.contains(it))
}

fn source(value: &Value) -> &str {
    value.origin().unwrap_or("default")
}

fn fault(faults: &mut BTreeSet<String>, key: &str, source: &str, allowed: &str) {
    faults.insert(format!("{key} ({source}): {allowed}"));
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// The text of all files in a folder and its subfolders.
    fn text(folder: &Path) -> String {
        let entries =
            std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        entries.map(|path| if path.is_dir() { text(&path) } else { read(path) }).collect()
    }

    #[test]
    fn secrets_are_known_by_their_names() {
        let sources = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        let fields = sources.lines().filter_map(|line| line.strip_prefix("    pub ")?.split_once(": "));
        let kinds = ["SecretString,", "Option<SecretString>,"];
        let secrets: Vec<_> = fields.filter(|(_, kind)| kinds.contains(kind)).collect();
        assert!(secrets.len() >= 2, "{secrets:?}");
        for (name, _) in secrets {
            assert!(
                is_secret(name),
                "{name}: `check-config` shows it, as its name has no word that `is_secret` knows"
            );
        }
    }

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
        let variable = |(name, value): &(&str, &str)| ((*name).to_owned(), Value::from(*value));
        let loaded = resolve(&variables.iter().map(variable).collect(), BTreeSet::new()).expect("no fault");
        let shown = format!("{loaded:?}");
        assert!(shown.contains("redacted") && !shown.contains("canary"), "{shown}");
    }
}
