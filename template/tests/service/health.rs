//! Probes: whether the process is alive, and whether it should get requests.

use serde_json::json;

use crate::app::{TestApp, eventually};

#[tokio::test]
async fn service_that_is_ready_says_so_on_both_listeners() {
    let app = TestApp::spawn(&[]).await;
    let health = app.get("/health").await;
    assert_eq!((health.status, health.json()), (200, json!({ "status": "ok" })));
    let ready = app.get("/ready").await;
    assert_eq!((ready.status, ready.json()), (200, json!({ "status": "ready" })), "it names no dependency");
    let live = app.admin("/health/live").await;
    assert_eq!((live.status, live.json()), (200, json!({ "status": "ok" })));
    // An optional dependency may have been slow to answer its first check.
    let ready = async || app.admin("/health/ready").await;
    let ready = eventually(ready, |ready| ready.json()["degraded"] == false).await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("ready")));
    assert!(ready.json()["checks"].is_array());
}

#[tokio::test]
async fn each_listener_serves_only_what_is_its_own() {
    let app = TestApp::spawn(&[("APP__ADMIN__HOST", "::1")]).await;
    assert!(app.address.is_ipv4() && app.admin.is_ipv6(), "{app:?}");
    for path in ["/metrics", "/health/live", "/health/ready"] {
        assert_eq!(app.get(path).await.status, 404, "{path} is not public");
    }
    for path in ["/v1/tasks", "/openapi.json", "/docs"] {
        assert_eq!(app.admin(path).await.status, 404, "{path} is not for operators");
    }
}
