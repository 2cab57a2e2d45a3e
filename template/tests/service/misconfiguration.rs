//! Configurations that are refused: each class of fault stops the start with exit code 78 before anything is bound, and
//! is reported with its key, its source and what is allowed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use crate::process::{Ended, Launch, Variables};

/// The faults that are reported for a configuration that is refused.
pub async fn refused(launch: Launch) -> Vec<String> {
    refused_by("serve", launch).await
}

async fn refused_by(command: &str, launch: Launch) -> Vec<String> {
    let Ended { code, out, err } = launch.run(command).await;
    assert_eq!(code, Some(78), "{command}: {err:#?}");
    assert!(out.is_empty(), "nothing was started: {out:#?}");
    assert_eq!(err[0], "bad configuration:");
    err[1..].to_vec()
}

/// A variable, its bad value, the key that it sets, and how the description of what is allowed begins.
pub type Row = (&'static str, &'static str, &'static str, &'static str);

pub const WHOLE: &str = "expected a whole number";
const DURATION: &str = "expected a duration such as \"250ms\" or \"5s\"";
const SIZE: &str = "expected a size such as \"64KiB\" or \"1MiB\"";
pub const URL: &str = "expected an http or https URL";
const ORIGIN: &str = "expected origins such as";
const NETWORK: &str = "expected networks such as \"10.0.0.0/8\", or addresses";
const SECTIONS: &str = "unknown key, expected one of admin, ";
const SIGNING: &str = "expected \"whsec_\" and 24 to 64 bytes in base64";

const ROWS: &[Row] = &[
    ("APP_ENV", "prod", "APP_ENV", "expected development, staging or production"),
    ("APP_ENV", "Production", "APP_ENV", "expected development, staging or production"),
    ("APP_ENV", "", "APP_ENV", "expected development, staging or production"),
    ("APP__HTTP__PRT", "1", "http.prt", "unknown key, expected one of "),
    ("APP__HTTP__PORT__TCP", "1", "http.port.tcp", "unknown key, expected one of "),
    ("APP__HTP__PORT", "1", "htp.port", SECTIONS),
    ("APP__HTTP", "1", "http", SECTIONS),
    ("APP__", "1", "", SECTIONS),
    ("APP__CACHE__CAPACITY", "many", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "-1", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "+5", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "007", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "1e5", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "12.9", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "1_000", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "0x10", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "yes", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "99999999999999999999", "cache.capacity", WHOLE),
    ("APP__CACHE__CAPACITY", "0", "cache.capacity", "expected 1 to 100000000"),
    ("APP__CACHE__CAPACITY", "100000001", "cache.capacity", "expected 1 to 100000000"),
    ("APP__JOBS__CONCURRENCY", "1001", "jobs.concurrency", "expected 1 to 1000"),
    ("APP__JOBS__QUEUE_CAPACITY", "0", "jobs.queue_capacity", "expected 1 to 10000000"),
    ("APP__JOBS__MAX_ATTEMPTS", "0", "jobs.max_attempts", "expected 1 to "),
    ("APP__HEALTH__FAILURE_THRESHOLD", "0", "health.failure_threshold", "expected 1 to 100"),
    ("APP__HEALTH__SUCCESS_THRESHOLD", "0", "health.success_threshold", "expected 1 to 100"),
    ("APP__HTTP__MAX_CONNECTIONS", "0", "http.max_connections", "expected 1 to 1000000"),
    ("APP__HTTP__MAX_IN_FLIGHT", "0", "http.max_in_flight", "expected 1 to 1000000"),
    ("PORT", "65536", "http.port", "expected 0 to 65535"),
    ("PORT", "80,81", "http.port", WHOLE),
    ("APP__ADMIN__PORT", "-80", "admin.port", WHOLE),
    ("APP__HTTP__HOST", "localhost", "http.host", "expected an IP address"),
    ("APP__ADMIN__HOST", "", "admin.host", "expected an IP address"),
    ("APP__LOG__ACCESS", "maybe", "log.access", "expected a boolean"),
    ("APP__LOG__ACCESS", "2", "log.access", "expected a boolean"),
    ("APP__LOG__ACCESS", "", "log.access", "expected a boolean"),
    ("APP__LOG__FORMAT", "xml", "log.format", "expected json or pretty"),
    ("RUST_LOG", "a=b=c", "log.filter", "expected levels such as"),
    ("RUST_LOG", "info; service=debug", "log.filter", "expected levels such as"),
    ("RUST_LOG", "info,", "log.filter", "expected levels such as"),
    ("RUST_LOG", "inof", "log.filter", "expected levels such as"),
    ("RUST_LOG", "", "log.filter", "expected levels such as"),
    ("APP__CACHE__TTL", "5", "cache.ttl", DURATION),
    ("APP__CACHE__TTL", "5 parsecs", "cache.ttl", DURATION),
    ("APP__CACHE__TTL", "-1s", "cache.ttl", DURATION),
    ("APP__CACHE__TTL", "5S", "cache.ttl", DURATION),
    ("APP__CACHE__TTL", "", "cache.ttl", DURATION),
    ("APP__CACHE__TTL", "99999999999999y", "cache.ttl", DURATION),
    ("APP__CACHE__TTL", "0s", "cache.ttl", "expected 1ms to 86400s"),
    ("APP__HEALTH__TIMEOUT", "1ms", "health.timeout", "expected 10ms to 60s"),
    ("APP__HEALTH__INTERVAL", "0s", "health.interval", "expected 50ms to 300s"),
    ("APP__HEALTH__STARTUP_TIMEOUT", "0s", "health.startup_timeout", "expected 10ms to 3600s"),
    ("APP__HTTP__HEADER_READ_TIMEOUT", "0s", "http.header_read_timeout", "expected "),
    ("APP__HTTP__BODY_TIMEOUT", "0s", "http.body_timeout", "expected "),
    ("APP__HTTP__REQUEST_TIMEOUT", "0s", "http.request_timeout", "expected "),
    ("APP__WEBHOOK__TIMEOUT", "0s", "webhook.timeout", "expected "),
    ("APP__SHUTDOWN__GRACE_DELAY", "2h", "shutdown.grace_delay", "expected "),
    ("APP__SHUTDOWN__DRAIN_TIMEOUT", "2h", "shutdown.drain_timeout", "expected "),
    ("APP__SHUTDOWN__FLUSH_TIMEOUT", "2h", "shutdown.flush_timeout", "expected "),
    ("APP__HTTP__IDLE_TIMEOUT", "2days", "http.idle_timeout", "expected 10ms to 86400s"),
    ("APP__HTTP__MAX_BODY_SIZE", "5", "http.max_body_size", SIZE),
    ("APP__HTTP__MAX_BODY_SIZE", "5 parsecs", "http.max_body_size", SIZE),
    ("APP__HTTP__MAX_BODY_SIZE", "-1MiB", "http.max_body_size", SIZE),
    ("APP__HTTP__MAX_BODY_SIZE", "", "http.max_body_size", SIZE),
    ("APP__HTTP__MAX_BODY_SIZE", "0B", "http.max_body_size", "expected 1 B "),
    ("APP__HTTP__MAX_BODY_SIZE", "2GiB", "http.max_body_size", "expected 1 B "),
    ("APP__HTTP__TRUSTED_PROXIES", "10/8", "http.trusted_proxies", NETWORK),
    ("APP__HTTP__TRUSTED_PROXIES", "10.0.0.0/33", "http.trusted_proxies", NETWORK),
    ("APP__HTTP__TRUSTED_PROXIES", "10.0.0.0/8;::1", "http.trusted_proxies", NETWORK),
    ("APP__HTTP__CORS_ALLOWED_ORIGINS", "*", "http.cors_allowed_origins", ORIGIN),
    ("APP__HTTP__CORS_ALLOWED_ORIGINS", "https://*.a.example", "http.cors_allowed_origins", ORIGIN),
    ("APP__HTTP__CORS_ALLOWED_ORIGINS", "null", "http.cors_allowed_origins", ORIGIN),
    ("APP__HTTP__CORS_ALLOWED_ORIGINS", "ftp://a", "http.cors_allowed_origins", ORIGIN),
    ("APP__HTTP__CORS_ALLOWED_ORIGINS", "https://a,https://b/", "http.cors_allowed_origins", ORIGIN),
    ("APP__WEBHOOK__URL", "not a url", "webhook.url", URL),
    ("APP__WEBHOOK__URL", "/path", "webhook.url", URL),
    ("APP__WEBHOOK__URL", "http://", "webhook.url", URL),
    ("APP__WEBHOOK__URL", "file:///etc/passwd", "webhook.url", URL),
    ("APP__WEBHOOK__SECRET", "canary", "webhook.secret", SIGNING),
    ("APP__WEBHOOK__SECRET", "whsec_Y2FuYXJ5", "webhook.secret", SIGNING),
    ("APP__HTTP__REQUEST_TIMEOUT", "30s", "http.request_timeout", "expected at most shutdown.drain_timeout"),
    ("APP__WEBHOOK__TIMEOUT", "30s", "webhook.timeout", "expected at most shutdown.drain_timeout"),
];

/// The only fault that is reported.
async fn only_fault(launch: Launch) -> String {
    let faults = refused(launch).await;
    assert_eq!(faults.len(), 1, "nothing else is wrong: {faults:#?}");
    assert!(!faults[0].contains("canary"), "{faults:#?}");
    faults.concat()
}

/// Checks each row by itself.
pub async fn assert_refused(rows: &[Row]) {
    for (variable, value, key, allowed) in rows {
        let launch = Launch::new(&[(variable, value)]);
        let launch = if *variable == "PORT" { launch.without("APP__HTTP__PORT") } else { launch };
        let fault = only_fault(launch).await;
        let expected = format!("{key} (environment {variable}): {allowed}");
        assert!(fault.starts_with(&expected), "{variable}={value:?}: expected {expected}, got {fault}");
    }
}

#[tokio::test]
async fn each_class_of_fault_is_named_with_its_source() {
    assert_refused(ROWS).await;
}

#[tokio::test]
async fn faults_in_a_file_are_named_with_the_file() {
    let cases = [
        ("port = 80\n", "port", SECTIONS),
        ("http = 5\n", "http", SECTIONS),
        ("[htp]\n", "htp", SECTIONS),
        ("[cache]\ncapacity = {}\n", "cache.capacity", WHOLE),
        ("[HTTP]\nport = 80\n", "HTTP.port", SECTIONS),
        ("[[http]]\nport = 80\n", "http", SECTIONS),
        ("[http.body_timeout]\nseconds = 5\n", "http.body_timeout.seconds", "unknown key, expected one of "),
        ("[cache]\ncapacity = 12.9\n", "cache.capacity", WHOLE),
        ("[cache]\ncapacity = true\n", "cache.capacity", WHOLE),
        ("[cache]\ncapacity = -5\n", "cache.capacity", WHOLE),
        ("[cache]\ncapacity = [5]\n", "cache.capacity", WHOLE),
        ("[cache]\ncapacity = \"007\"\n", "cache.capacity", WHOLE),
        ("[cache]\nttl = 5\n", "cache.ttl", DURATION),
        ("[cache]\nttl = 1979-05-27\n", "cache.ttl", DURATION),
        ("[log]\naccess = 2\n", "log.access", "expected true or false"),
        ("[http]\nmax_body_size = 1024\n", "http.max_body_size", SIZE),
        ("[http]\ntrusted_proxies = [[\"a\"]]\n", "http.trusted_proxies", "expected a string"),
        ("[http]\ntrusted_proxies = 10\n", "http.trusted_proxies", "expected a list or comma-separated text"),
        ("[http]\nport = 80\nport = 81\n", "(file)", "expected TOML: TOML parse error at line 3"),
        ("[cache]\ncapacity = 007\n", "(file)", "expected TOML: TOML parse error at line 2"),
        ("[webhook]\nsecret = canary\n", "(file)", "expected TOML: TOML parse error at line 2"),
        ("{\"http\": {}}\n", "(file)", "expected TOML: TOML parse error at line 1"),
    ];
    for (text, key, allowed) in cases {
        let fault = only_fault(Launch::new(&[]).file("config/production.toml", text)).await;
        let expected = format!("{key} (config/production.toml): {allowed}");
        assert!(fault.starts_with(&expected), "{text}: expected {expected}, got {fault}");
    }
}

#[tokio::test]
async fn both_of_two_contradicting_values_are_named() {
    let cases: [(Variables, &[&str]); 2] = [
        (&[("APP__HTTP__PORT", "8080"), ("APP__ADMIN__PORT", "8080")], &["admin.port ", "http.port "]),
        (
            &[
                ("APP__SHUTDOWN__DRAIN_TIMEOUT", "1s"),
                ("APP__HTTP__REQUEST_TIMEOUT", "2s"),
                ("APP__WEBHOOK__TIMEOUT", "2s"),
            ],
            &["http.request_timeout ", "webhook.timeout "],
        ),
    ];
    for (variables, keys) in cases {
        let faults = refused(Launch::new(variables)).await;
        assert!(faults.len() == keys.len(), "{faults:#?}");
        assert!(faults.iter().zip(keys).all(|(fault, key)| fault.starts_with(key)), "{faults:#?}");
    }
}

#[tokio::test]
async fn what_stands_in_for_a_wrong_value_contradicts_nothing() {
    for variables in [
        // A minute was meant, which the other value does not exceed.
        [("APP__SHUTDOWN__DRAIN_TIMEOUT", "60"), ("APP__HTTP__REQUEST_TIMEOUT", "30s")],
        [("APP__HTTP__PORT", "80800"), ("APP__ADMIN__PORT", "8080")],
        [("APP__HTTP__REQUEST_TIMEOUT", "30"), ("APP__SHUTDOWN__DRAIN_TIMEOUT", "1s")],
    ] {
        let launch = Launch::new(&[("APP__WEBHOOK__TIMEOUT", "1s")]);
        only_fault(launch.set(&variables)).await;
    }
}

#[tokio::test]
async fn webhook_may_name_no_address_inside_however_it_is_written() {
    for host in
        ["127.1", "0x7f000001", "2130706433", "169.254.169.254", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]"]
    {
        let url = format!("http://{host}/canary");
        let launch = Launch::new(&[("APP__WEBHOOK__URL", &url)]);
        let fault = only_fault(launch.without("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES")).await;
        assert!(
            fault.starts_with("webhook.url (environment APP__WEBHOOK__URL): expected a public"),
            "{fault}"
        );
    }
}

#[tokio::test]
async fn values_that_are_no_text_are_faults() {
    for (variable, key) in [
        ("APP_ENV", "APP_ENV"),
        ("APP_CONFIG_FILE", "APP_CONFIG_FILE"),
        ("APP__LOG__FILTER", "log.filter"),
        ("APP__WEBHOOK__SECRET", "webhook.secret"),
        ("PORT", "http.port"),
    ] {
        let launch = Launch::new(&[]).set_bytes(variable, OsStr::from_bytes(b"canary \xff"));
        let fault = only_fault(launch).await;
        assert_eq!(fault, format!("{key} (environment {variable}): expected UTF-8"));
    }
}

#[tokio::test]
async fn all_faults_are_reported_at_once() {
    let file = "[http]\nport = 70000\ncolour = \"red\"\n[jobs]\nconcurrency = 0\n";
    let launch = Launch::new(&[("APP__CACHE__TTL", "soon"), ("APP__ADMIN__HOST", "somewhere")]);
    let faults = refused(launch.without("APP__HTTP__PORT").file("config/production.toml", file)).await;
    let keys: Vec<_> = faults.iter().filter_map(|fault| fault.split(':').next()).collect();
    assert_eq!(
        keys,
        [
            "admin.host (environment APP__ADMIN__HOST)",
            "cache.ttl (environment APP__CACHE__TTL)",
            "http.colour (config/production.toml)",
            "http.port (config/production.toml)",
            "jobs.concurrency (config/production.toml)",
        ]
    );
}

#[test]
fn exit_code_is_the_same_if_nobody_reads_why() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME"))));
    let command = command.arg("check-config").env_clear().env("APP_ENV", "nowhere").stderr(writer);
    assert_eq!(command.status().expect("the binary starts").code(), Some(78));
}

#[tokio::test]
async fn other_commands_refuse_what_the_service_refuses() {
    let commands = vec!["check-config", "healthcheck"];
    //@ if postgres
    let commands = [commands, vec!["migrate", "dead-letters list"]].concat();
    //@ end
    for command in commands {
        let bad = || Launch::new(&[("APP__CACHE__TTL", "soon"), ("APP__ADMIN__PORT", "-80")]);
        let faults = refused_by(command, bad()).await;
        assert_eq!(faults, refused(bad()).await, "{command}");
        assert_eq!(faults.len(), 2, "{faults:#?}");
    }
}

#[tokio::test]
async fn files_that_can_not_be_read_are_faults() {
    let faults = refused(Launch::new(&[("APP_CONFIG_FILE", "missing.toml")])).await;
    assert!(faults[0].starts_with("APP_CONFIG_FILE (missing.toml): "), "{faults:#?}");
    let faults = refused(Launch::new(&[("APP_CONFIG_FILE", "config")]).file("config/a.toml", "")).await;
    assert!(faults[0].starts_with("APP_CONFIG_FILE (config): "), "{faults:#?}");
    let faults = refused(Launch::new(&[("APP_ENV", "staging")]).file("config/staging.toml/a", "")).await;
    assert!(faults[0].starts_with("(file) (config/staging.toml): "), "{faults:#?}");
    // A malformed line, and a folder in place of the file.
    for (name, text) in [(".env", "= canary =\n"), (".env/canary", "")] {
        let faults = refused(Launch::new(&[("APP_ENV", "development")]).file(name, text)).await;
        assert!(faults[0].starts_with(".env (.env): expected "), "{faults:#?}");
        assert!(!faults.join("\n").contains("canary"), "{faults:#?}");
    }
}

#[tokio::test]
async fn dotenv_can_not_leave_development() {
    let launch = Launch::new(&[]).without("APP_ENV").file(".env", "APP_ENV=production\n");
    let faults = refused(launch).await;
    assert_eq!(faults, ["APP_ENV (.env APP_ENV): expected development, where .env is read"]);
}
