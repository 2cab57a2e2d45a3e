//! PostgreSQL: a database for each test.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

/// What no server listens at: enough for commands that ask none.
pub const NOWHERE: &str = "postgres://nobody@127.0.0.1:1/nowhere";

/// A database of a test's own, dropped with it.
#[derive(Debug)]
pub struct Database {
    pub url: String,
    name: String,
}

impl Database {
    pub async fn create() -> Self {
        let name = format!("test_{}", Uuid::now_v7().simple());
        administer(format!("CREATE DATABASE {name}"))
            .await
            .expect("the server of DATABASE_URL makes a database");
        let mut url: reqwest::Url = server().parse().expect("DATABASE_URL is a URL");
        url.set_path(&name);
        Self { url: url.into(), name }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // The test's own runtime can't be waited for here.
        let dropped = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(administer(sql)))
        });
        let _ = dropped.join();
    }
}

/// The server that tests make their databases on.
#[expect(clippy::disallowed_methods, reason = "what the tests run against is no part of the service")]
pub fn server() -> String {
    std::env::var("DATABASE_URL").expect(
        "set DATABASE_URL to a PostgreSQL superuser's URL, such as postgres://postgres@127.0.0.1:5432/postgres",
    )
}

async fn administer(sql: String) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(&server()).await?;
    connection.execute(AssertSqlSafe(sql)).await?;
    connection.close().await
}
