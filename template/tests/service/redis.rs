//! Redis.

/// The server that replicas share.
#[expect(clippy::disallowed_methods, reason = "what the tests run against is no part of the service")]
pub fn server() -> String {
    std::env::var("REDIS_URL").expect("set REDIS_URL to a server for tests, such as redis://127.0.0.1:6379/0")
}
