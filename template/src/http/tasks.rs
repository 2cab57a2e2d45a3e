//! The task routes: from HTTP to the use cases and back.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::extract::{Id, IfMatch, Query, Valid};
use super::openapi::{BodyRefused, ChangeRefused, Failures, NotFound, ParametersRefused};
use super::problem::{FieldError, Problem, Result};
use crate::task::{NewTask, Rendered, Status, Task, TaskPage, TaskPatch};
use crate::tasks::Tasks;

const MAX_LIMIT: u16 = 100;

/// Behind an `Arc`, since each request clones it.
type Shared = State<Arc<Tasks>>;

/// All routes under `/v1/tasks`.
pub fn router() -> OpenApiRouter<Arc<Tasks>> {
    OpenApiRouter::new()
        .routes(routes!(create_task, list_tasks))
        .routes(routes!(get_task, patch_task, delete_task))
        .routes(routes!(complete_task))
}

/// A task with its `ETag`.
fn tagged(status: StatusCode, task: impl Into<Rendered>) -> Response {
    let Rendered { version, json } = task.into();
    // With room for what `observe` and the limits add: growing the map costs more than filling it.
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.extend(HeaderValue::try_from(format!("\"{version}\"")).map(|tag| (header::ETAG, tag)));
    let mut response = (status, Body::from(json)).into_response();
    *response.headers_mut() = headers;
    response
}

/// Create a task
#[utoipa::path(
    post, path = "/v1/tasks", tag = "tasks", request_body = NewTask,
    responses(
        (status = 201, description = "Created", body = Task, headers(("location" = String), ("etag" = String))),
        BodyRefused, Failures
    )
)]
async fn create_task(State(tasks): Shared, Valid(new): Valid<NewTask>) -> Result<Response> {
    let task = tasks.create(new).await?;
    let location = [(header::LOCATION, format!("/v1/tasks/{}", task.id))];
    Ok((location, tagged(StatusCode::CREATED, &task)).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListParameters {
    /// The maximum number of tasks in a page: 1 to 100, 20 by default. Long tasks fill a page sooner, so only a page
    /// whose `next_cursor` is `null` is the last.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u16>,
    /// The `next_cursor` of the previous page.
    #[serde(default, deserialize_with = "uuid::serde::hyphenated::option::deserialize")]
    cursor: Option<Uuid>,
    /// Only tasks with this status.
    #[param(inline)]
    status: Option<Status>,
}

/// List tasks, oldest first
#[utoipa::path(
    get, path = "/v1/tasks", tag = "tasks", params(ListParameters),
    responses((status = 200, description = "A page", body = TaskPage), ParametersRefused, Failures)
)]
async fn list_tasks(State(tasks): Shared, Query(asked): Query<ListParameters>) -> Result<Json<TaskPage>> {
    let limit = asked.limit.unwrap_or(20);
    if !(1..=MAX_LIMIT).contains(&limit) {
        let error = FieldError { field: "limit".to_owned(), detail: format!("expected 1 to {MAX_LIMIT}") };
        return Err(Problem::validation("A parameter is not valid.", vec![error]));
    }
    Ok(Json(tasks.list(asked.status, asked.cursor.unwrap_or_default(), limit).await?))
}

/// Read a task
#[utoipa::path(
    get, path = "/v1/tasks/{id}", tag = "tasks", params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The task", body = Task, headers(("etag" = String))),
        NotFound, Failures
    )
)]
async fn get_task(State(tasks): Shared, Id(id): Id) -> Result<Response> {
    Ok(tagged(StatusCode::OK, tasks.get(id).await?))
}

/// Change a task
#[utoipa::path(
    patch, path = "/v1/tasks/{id}", tag = "tasks", request_body = TaskPatch,
    params(("id" = Uuid, Path), IfMatch),
    responses(
        (status = 200, description = "The task as it is now", body = Task, headers(("etag" = String))),
        BodyRefused, NotFound, ChangeRefused, Failures
    )
)]
async fn patch_task(
    State(tasks): Shared,
    Id(id): Id,
    IfMatch(version): IfMatch,
    Valid(patch): Valid<TaskPatch>,
) -> Result<Response> {
    Ok(tagged(StatusCode::OK, &tasks.update(id, version, patch).await?))
}

/// Delete a task
#[utoipa::path(
    delete, path = "/v1/tasks/{id}", tag = "tasks",
    params(("id" = Uuid, Path), IfMatch),
    responses((status = 204, description = "Deleted"), NotFound, ChangeRefused, Failures)
)]
async fn delete_task(State(tasks): Shared, Id(id): Id, IfMatch(version): IfMatch) -> Result<StatusCode> {
    tasks.delete(id, version).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Complete a task; repeating it changes nothing, and an `if-match` must then name the new `ETag`
#[utoipa::path(
    post, path = "/v1/tasks/{id}/complete", tag = "tasks",
    params(("id" = Uuid, Path), IfMatch),
    responses(
        (status = 200, description = "The task as it is now", body = Task, headers(("etag" = String))),
        NotFound, ChangeRefused, Failures
    )
)]
async fn complete_task(State(tasks): Shared, Id(id): Id, IfMatch(version): IfMatch) -> Result<Response> {
    Ok(tagged(StatusCode::OK, &tasks.complete(id, version).await?))
}
