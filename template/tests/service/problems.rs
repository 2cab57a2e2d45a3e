//! Errors: each is `application/problem+json` with every member, whatever layer it comes from, and reveals nothing of
//! the cause.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::{Answer, TestApp, path_of};
use crate::wire::{NEW_TASK_HEAD, Wire};

/// Checks what is required of every problem, and returns it.
pub fn problem(answer: &Answer, status: u16, category: &str) -> Value {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    for member in ["type", "title", "detail", "category", "request_id"] {
        assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {problem}");
    }
    assert_eq!((&problem["status"], &problem["category"]), (&json!(status), &json!(category)));
    assert_eq!(problem["request_id"], answer.header("x-request-id"));
    assert_eq!(problem["errors"].is_array(), category == "validation", "{problem}");
    problem
}

#[tokio::test]
async fn errors_on_the_admin_port_are_problems() {
    let app = TestApp::spawn(&[]).await;
    problem(&app.admin("/nothing").await, 404, "not_found");
    let ask = async |method: Method, body: Vec<u8>| {
        let request = app.client.request(method, format!("http://{}/log/filter", app.admin));
        Answer::to(request.body(body)).await
    };
    problem(&ask(Method::POST, Vec::new()).await, 405, "method_not_allowed");
    problem(&ask(Method::PUT, b"info,\xff=debug".to_vec()).await, 400, "validation");
    problem(&ask(Method::PUT, vec![b'a'; 4097]).await, 413, "too_large");
    let mut half = Wire::connect(app.admin).await;
    half.send("PUT /log/filter HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\ninfo").await;
    problem(&half.answer().await, 504, "timeout");
}

/// The fields that a problem names.
fn fields(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    errors.iter().map(|error| error["field"].as_str().expect("a field")).collect()
}

#[tokio::test]
async fn tasks_that_are_not_valid_are_refused_by_field() {
    let app = TestApp::spawn(&[]).await;
    let at_most = json!({ "title": "é".repeat(200), "description": "ü\n\t".repeat(3_333) });
    assert_eq!(app.post("/v1/tasks", &at_most).await.status, 201);
    let cases = [
        (json!({ "title": "" }), "/title"),
        (json!({ "title": " \t " }), "/title"),
        (json!({ "title": "  " }), "/title"),
        (json!({ "title": "two\rlines" }), "/title"),
        (json!({ "title": "é".repeat(201) }), "/title"),
        (json!({ "title": "two\nlines" }), "/title"),
        (json!({ "title": "bell \u{7}" }), "/title"),
        (json!({ "title": 5 }), "/title"),
        (json!({ "title": null }), "/title"),
        (json!({ "title": "a", "description": "x".repeat(10_001) }), "/description"),
        (json!({ "title": "a", "description": "\u{0}" }), "/description"),
        (json!({ "title": "a", "description": ["x"] }), "/description"),
        (json!({ "title": "a", "titel": "b" }), "/titel"),
        (json!([]), ""),
        (json!(["a"]), ""),
        (json!(["a", "b"]), ""),
        (json!("text"), ""),
        (json!({}), "/title"),
        (json!({ "title": "a", "a/b": 1 }), "/a~1b"),
    ];
    for (body, field) in &cases {
        let answer = app.post("/v1/tasks", body).await;
        assert_eq!(fields(&problem(&answer, 422, "validation")), [*field], "{body} {answer:?}");
    }
    let path = path_of(&app.create("a").await);
    for (body, field) in cases.iter().filter(|(body, _)| *body != json!({})) {
        let answer = app.patch(&path, body).await;
        let problem = problem(&answer, 422, "validation");
        assert_eq!(fields(&problem), [*field], "{body} {answer:?}");
        assert!(!problem.to_string().contains("TaskPatch"), "clients know no such thing: {problem}");
    }
    let both = app.post("/v1/tasks", &json!({ "title": "", "description": "\u{0}" })).await;
    assert_eq!(fields(&problem(&both, 422, "validation")).len(), 2, "all faults at once");
}

#[tokio::test]
async fn problem_quotes_little_of_what_was_sent() {
    let app = TestApp::spawn(&[]).await;
    let many = |part: &str| part.repeat(100_000);
    // Each character of the first body is quoted as an escape sequence, which is escaped again in JSON.
    for body in [json!(many("\u{7f}")), json!({ "title": [many("é")] }), json!({ many("/"): 1 })] {
        let answer = app.post("/v1/tasks", &body).await;
        problem(&answer, 422, "validation");
        assert!(answer.body.len() < 2_000, "{} bytes", answer.body.len());
    }
}

#[tokio::test]
async fn bodies_that_are_no_json_are_refused() {
    let app = TestApp::spawn(&[("APP__HTTP__MAX_BODY_SIZE", "1KiB")]).await;
    let post = async |content_type: Option<&str>, body: String| {
        let request = app.request(Method::POST, "/v1/tasks").body(body);
        Answer::to(match content_type {
            Some(content_type) => request.header("content-type", content_type),
            None => request,
        })
        .await
    };
    let task = r#"{"title":"a"}"#;
    for kind in ["application/json; charset=utf-8", "Application/JSON"] {
        assert_eq!(post(Some(kind), task.to_owned()).await.status, 201, "{kind}");
    }
    for body in ["", "{", r#"{"title":"a"} {}"#, "title=a", "\u{feff}{}"] {
        problem(&post(Some("application/json"), body.to_owned()).await, 400, "validation");
    }
    let twice = post(Some("application/json"), r#"{"title":"a","title":"b"}"#.to_owned()).await;
    assert_eq!(fields(&problem(&twice, 422, "validation")), ["/title"]);
    problem(&post(None, task.to_owned()).await, 415, "validation");
    problem(&post(Some("text/plain"), task.to_owned()).await, 415, "validation");
    let large = json!({ "title": "a", "description": "x".repeat(1024) }).to_string();
    problem(&post(Some("application/json"), large.clone()).await, 413, "too_large");

    let mut chunked = app.connect().await;
    chunked
        .send(&format!("{NEW_TASK_HEAD}transfer-encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n", large.len()))
        .await;
    problem(&chunked.answer().await, 413, "too_large");

    // Routes that take no body refuse a large one as well, and say so in the document.
    let complete = format!("/v1/tasks/{}/complete", Uuid::now_v7());
    problem(&Answer::to(app.request(Method::POST, &complete).body(large)).await, 413, "too_large");
    let document = app.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().expect("paths").values();
    for operation in paths.flat_map(|path| path.as_object().expect("operations").values()) {
        assert!(operation["responses"]["413"].is_object(), "{}", operation["operationId"]);
    }
}

#[tokio::test]
async fn requests_that_lead_nowhere_are_problems() {
    let app = TestApp::spawn(&[]).await;
    for path in ["/", "/v1", "/v1/task", "/v1/tasks/", "/v1/tasks/no-id", "/v1/tasks/%00", "/metrics"] {
        problem(&app.get(path).await, 404, "not_found");
    }
    let unknown = format!("/v1/tasks/{}", uuid::Uuid::now_v7());
    problem(&app.get(&unknown).await, 404, "not_found");
    let id = app.create("a").await["id"].as_str().expect("an id").to_owned();
    for other in [id.replace('-', ""), format!("{{{id}}}"), format!("urn:uuid:{id}")] {
        problem(&app.get(&format!("/v1/tasks/{other}")).await, 404, "not_found");
        let answer = app.get(&format!("/v1/tasks?cursor={other}")).await;
        assert_eq!(fields(&problem(&answer, 422, "validation")), ["cursor"], "{other}");
    }

    let taken = |answer: &Answer| {
        let mut methods: Vec<String> = answer.header("allow").split(',').map(str::to_owned).collect();
        methods.sort_unstable();
        methods
    };
    let answer = app.delete("/v1/tasks").await;
    problem(&answer, 405, "method_not_allowed");
    assert_eq!(taken(&answer), ["GET", "HEAD", "POST"]);
    let answer = app.post(&unknown, &json!({})).await;
    problem(&answer, 405, "method_not_allowed");
    assert_eq!(taken(&answer), ["DELETE", "GET", "HEAD", "PATCH"]);
    let answer = app.delete("/health").await;
    problem(&answer, 405, "method_not_allowed");
    assert_eq!(taken(&answer), ["GET", "HEAD"]);
}

#[tokio::test]
async fn parameters_that_are_not_valid_are_named() {
    let app = TestApp::spawn(&[]).await;
    for limit in ["0", "101", "-1", "x", "", "65536"] {
        let answer = app.get(&format!("/v1/tasks?limit={limit}")).await;
        assert_eq!(fields(&problem(&answer, 422, "validation")), ["limit"], "{limit} {answer:?}");
    }
    for (query, field) in [("cursor=x", "cursor"), ("status=done", "status"), ("limit=1&limit=2", "limit")] {
        let answer = app.get(&format!("/v1/tasks?{query}")).await;
        assert_eq!(fields(&problem(&answer, 422, "validation")), [field], "{answer:?}");
    }
    problem(&app.get("/v1/tasks?page=2").await, 422, "validation");
    for limit in ["1", "100"] {
        assert_eq!(app.get(&format!("/v1/tasks?limit={limit}")).await.status, 200);
    }
}

#[tokio::test]
async fn request_id_is_kept_where_it_is_harmless() {
    let mut app = TestApp::spawn(&[]).await;
    let ask = async |id: &[u8]| {
        let answer = Answer::to(app.request(Method::GET, "/nowhere").header("x-request-id", id)).await;
        problem(&answer, 404, "not_found")["request_id"].as_str().expect("an id").to_owned()
    };
    let longest = "x".repeat(128);
    for kept in ["a", "req-1/2:3_4", "{\"id\":\"1\"}", &longest] {
        assert_eq!(ask(kept.as_bytes()).await, kept);
    }
    let too_long = "x".repeat(129);
    for replaced in ["", "a b", "a\tb", "ä", &too_long] {
        let id = ask(replaced.as_bytes()).await;
        assert!(id.parse::<uuid::Uuid>().is_ok(), "{replaced:?} became {id}");
    }
    let line = app.process.event_where("http.request", |line| line["request_id"] == longest.as_str()).await;
    assert_eq!((&line["status"], &line["route"]), (&json!(404), &json!("unmatched")));
}
