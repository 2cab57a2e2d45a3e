//! Build settings for the sqlx macros.

#[expect(clippy::disallowed_methods, reason = "this is not part of the service")]
fn main() {
    // A new migration has to be embedded even when no Rust file changed.
    println!("cargo:rerun-if-changed=migrations");
    // Queries are checked against .sqlx/, so that building needs no database, whatever DATABASE_URL says.
    println!("cargo:rerun-if-env-changed=SQLX_OFFLINE");
    if std::env::var_os("SQLX_OFFLINE").is_none() {
        println!("cargo:rustc-env=SQLX_OFFLINE=true");
    }
}
