//! Tasks in Postgres: the service's queries, and a pool of the same size.

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use crate::{Anything, NewTask, PAGE, Store, Task};

#[derive(Clone)]
pub struct Postgres(PgPool);

impl Postgres {
    pub async fn connect(url: &str) -> Result<Self, Anything> {
        Ok(Self(PgPoolOptions::new().max_connections(10).connect(url).await?))
    }
}

impl Store for Postgres {
    async fn create(&self, new: NewTask) -> Result<Task, Anything> {
        let query = sqlx::query_as(
            "INSERT INTO tasks (id, title, description, status, version, created_at, updated_at)
             VALUES ($1, $2, $3, 'open', 1, now(), now())
             RETURNING id, title, description, status, version, created_at, updated_at, completed_at",
        );
        let query = query.bind(Uuid::now_v7()).bind(new.title).bind(new.description);
        Ok(query.fetch_one(&self.0).await?)
    }

    async fn get(&self, id: Uuid) -> Result<Option<Task>, Anything> {
        let query = sqlx::query_as(
            "SELECT id, title, description, status, version, created_at, updated_at, completed_at FROM tasks
             WHERE id = $1",
        );
        Ok(query.bind(id).fetch_optional(&self.0).await?)
    }

    async fn list(&self) -> Result<Vec<Task>, Anything> {
        let query = sqlx::query_as(
            "SELECT id, title, description, status, version, created_at, updated_at, completed_at FROM tasks
             WHERE id > $1 ORDER BY id LIMIT $2",
        );
        Ok(query.bind(Uuid::nil()).bind(i64::try_from(PAGE + 1)?).fetch_all(&self.0).await?)
    }
}
