//! What the service is measured against: axum as its documentation has it, and the same answers, byte for byte.
//! No log, metric, limit, deadline, validation or shutdown.
//!
//! `bare memory`, `bare postgres <url>` or `bare redis <url>` says on its first line where it listens.

use std::error::Error;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

mod memory;
mod postgres;
mod redis_only;

type Anything = Box<dyn Error + Send + Sync>;

#[derive(Clone, Serialize, Deserialize, sqlx::FromRow)]
struct Task {
    id: Uuid,
    title: String,
    description: Option<String>,
    status: String,
    version: i64,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    completed_at: Option<OffsetDateTime>,
}

#[derive(Deserialize)]
struct NewTask {
    title: String,
    description: Option<String>,
}

#[derive(Serialize)]
struct Page {
    items: Vec<Task>,
    next_cursor: Option<Uuid>,
}

impl Task {
    fn new(new: NewTask) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            id: Uuid::now_v7(),
            title: new.title,
            description: new.description,
            status: "open".to_owned(),
            version: 1,
            created_at: now,
            updated_at: now,
            completed_at: None,
        }
    }
}

/// How many tasks a page has.
const PAGE: usize = 20;

/// Where tasks are kept.
trait Store: Clone + Send + Sync + 'static {
    fn create(&self, new: NewTask) -> impl Future<Output = Result<Task, Anything>> + Send;
    fn get(&self, id: Uuid) -> impl Future<Output = Result<Option<Task>, Anything>> + Send;
    /// One more than a page has, if there are so many.
    fn list(&self) -> impl Future<Output = Result<Vec<Task>, Anything>> + Send;
}

fn router<S: Store>(store: S) -> Router {
    Router::new()
        .route("/v1/tasks", post(create_task::<S>).get(list_tasks::<S>))
        .route("/v1/tasks/{id}", get(get_task::<S>))
        .with_state(store)
}

async fn create_task<S: Store>(State(store): State<S>, Json(new): Json<NewTask>) -> Result<Response, Failed> {
    let task = store.create(new).await?;
    let location = [(header::LOCATION, format!("/v1/tasks/{}", task.id))];
    Ok((StatusCode::CREATED, location, tag(&task), Json(task)).into_response())
}

async fn get_task<S: Store>(State(store): State<S>, Path(id): Path<Uuid>) -> Result<Response, Failed> {
    Ok(match store.get(id).await? {
        Some(task) => (tag(&task), Json(task)).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

async fn list_tasks<S: Store>(State(store): State<S>) -> Result<Json<Page>, Failed> {
    let mut items = store.list().await?;
    let more = items.len() > PAGE;
    items.truncate(PAGE);
    let next_cursor = items.last().filter(|_| more).map(|last| last.id);
    Ok(Json(Page { items, next_cursor }))
}

fn tag(task: &Task) -> [(header::HeaderName, String); 1] {
    [(header::ETAG, format!("\"{}\"", task.version))]
}

struct Failed(Anything);

impl From<Anything> for Failed {
    fn from(error: Anything) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}

#[tokio::main]
async fn main() -> Result<(), Anything> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let router = match arguments[..] {
        ["memory"] => router(memory::Memory::default()),
        ["postgres", url] => router(postgres::Postgres::connect(url).await?),
        ["redis", url] => router(redis_only::Redis::connect(url).await?),
        _ => return Err("bare memory | postgres <url> | redis <url>".into()),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, router).await?)
}
