//! Requests that no honest client sends, written byte by byte: malformed ones are refused by the first layer that sees
//! them, ambiguous ones are not interpreted either way, and nothing of them reaches another request.

use crate::app::{TestApp, eventually, path_of};
use crate::problems::problem;
use crate::wire::NEW_TASK_HEAD;

/// The expected outcome of a request.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// The application answers; from 400 on the response is a problem.
    Answer(u16),
    /// The HTTP layer can't read the request and refuses it with a bare status before the application sees it.
    Bare(u16),
}
use Expected::{Answer, Bare};

/// A name, the bytes, and the expected outcome.
type Row = (&'static str, Vec<u8>, Expected);

/// A complete request that must not be served: only a server that misreads the request before it would see it.
const SMUGGLED: &str = "GET /health HTTP/1.1\r\nhost: test\r\nx-request-id: smuggled\r\n\r\n";

const TASK: &str = r#"{"title":"a"}"#;

/// `GET /health` with these header lines, each of which ends in CRLF.
fn head(lines: impl AsRef<[u8]>) -> Vec<u8> {
    [b"GET /health HTTP/1.1\r\nhost: test\r\n", lines.as_ref(), b"\r\n"].concat()
}

fn get(target: impl AsRef<[u8]>) -> Vec<u8> {
    [b"GET ", target.as_ref(), b" HTTP/1.1\r\nhost: test\r\n\r\n"].concat()
}

/// A request for a new task, with the framing headers `lines`, and with `rest` after its head.
fn framed(lines: &str, rest: &str) -> Vec<u8> {
    format!("{NEW_TASK_HEAD}{lines}\r\n{rest}").into_bytes()
}

fn chunked(rest: &str) -> Vec<u8> {
    framed("transfer-encoding: chunked\r\n", rest)
}

/// A request with a complete body and additional header lines.
fn sent(method: &str, path: &str, lines: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n{lines}\r\n");
    [head.as_bytes(), body].concat()
}

fn body(body: impl AsRef<[u8]>) -> Vec<u8> {
    sent("POST", "/v1/tasks", "content-type: application/json\r\n", body)
}

fn request_lines() -> Vec<Row> {
    let line = |line: &str| format!("{line}\r\nhost: test\r\n\r\n").into_bytes();
    vec![
        ("no version", line("GET /health"), Bare(400)),
        ("version 1.2", line("GET /health HTTP/1.2"), Bare(400)),
        ("version 2.0 as text", line("GET /health HTTP/2.0"), Bare(400)),
        ("version 3.0", line("GET /health HTTP/3.0"), Bare(400)),
        ("version in lower case", line("GET /health http/1.1"), Bare(400)),
        ("more after the version", line("GET /health HTTP/1.1 x"), Bare(400)),
        ("two spaces", line("GET  /health HTTP/1.1"), Bare(400)),
        ("tabs for spaces", line("GET\t/health\tHTTP/1.1"), Bare(400)),
        ("method in lower case", line("get /health HTTP/1.1"), Answer(405)),
        ("method that is no token", line("G(T /health HTTP/1.1"), Bare(400)),
        ("method without end", line(&format!("{} /health HTTP/1.1", "A".repeat(10_000))), Answer(405)),
        ("method to trace", line("TRACE /v1/tasks HTTP/1.1"), Answer(405)),
        ("method to tunnel", line("CONNECT test:80 HTTP/1.1"), Answer(404)),
        ("target of the whole server", line("OPTIONS * HTTP/1.1"), Answer(404)),
        ("target without a slash", line("GET health HTTP/1.1"), Answer(404)),
        ("target of another host", line("GET http://evil.example/health HTTP/1.1"), Answer(200)),
        ("target with a space", line("GET /hea lth HTTP/1.1"), Bare(400)),
        ("target with a NUL", line("GET /hea\0lth HTTP/1.1"), Bare(400)),
        ("target with half a character", get(b"/health\xff"), Bare(400)),
        ("target of 60 KB", get("/x".repeat(30_000)), Answer(404)),
        ("target of 70 KB", get("/x".repeat(35_000)), Bare(414)),
        ("empty lines first", line("\r\n\r\nGET /health HTTP/1.1"), Answer(200)),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), Bare(400)),
        ("another protocol", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), Bare(400)),
    ]
}

fn heads() -> Vec<Row> {
    let plain = |lines: &str| format!("GET /health HTTP/1.1\r\n{lines}\r\n").into_bytes();
    let many = |count| "x: y\r\n".repeat(count);
    vec![
        ("no host", plain(""), Answer(400)),
        ("two hosts", plain("host: a\r\nhost: b\r\n"), Answer(400)),
        ("one host twice", plain("host: a\r\nhost: a\r\n"), Answer(400)),
        ("host that is an IPv6 address", plain("host: [::1]:8080\r\n"), Answer(200)),
        ("host with an underscore", plain("host: a_b:80\r\n"), Answer(200)),
        ("host with a path", plain("host: a/b\r\n"), Answer(400)),
        ("host with a user", plain("host: user@a\r\n"), Answer(400)),
        ("host with two ports", plain("host: a:80:90\r\n"), Answer(400)),
        ("host with a space", plain("host: a b\r\n"), Answer(400)),
        ("two hosts of old", b"GET /health HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n".to_vec(), Answer(400)),
        ("line without a colon", head("x\r\n"), Bare(400)),
        ("line without a name", head(": x\r\n"), Bare(400)),
        ("space before the colon", head("x : x\r\n"), Bare(400)),
        ("name that is no token", head("x(y): x\r\n"), Bare(400)),
        ("name beyond ASCII", head("x-ä: x\r\n"), Bare(400)),
        ("folded line", head("x: a\r\n b\r\n"), Bare(400)),
        ("folded first line", plain(" x: a\r\nhost: test\r\n"), Bare(400)),
        ("NUL in a value", head("x: a\0b\r\n"), Bare(400)),
        ("NUL in a name", head("x\0: a\r\n"), Bare(400)),
        ("escape in a value", head("x: a\x1b[2J\r\n"), Bare(400)),
        ("CR alone", head("x: a\rb: c\r\n"), Bare(400)),
        ("LF alone", b"GET /health HTTP/1.1\nhost: test\n\n".to_vec(), Answer(200)),
        ("90 lines", head(many(90)), Answer(200)),
        ("200 lines", head(many(200)), Bare(431)),
        ("line of 200 KB", head(format!("x: {}\r\n", "x".repeat(200_000))), Bare(431)),
        ("line of 1 MB", head(format!("x: {}\r\n", "x".repeat(1_000_000))), Bare(431)),
        ("request id of 8 KB", head(format!("x-request-id: {}\r\n", "x".repeat(8_192))), Answer(200)),
        ("request id beyond ASCII", head(b"x-request-id: \xff\xfe\r\n"), Answer(200)),
        ("request id as JSON", head("x-request-id: \"},{\"level\":\"ERROR\r\n"), Answer(200)),
        ("two request ids", head("x-request-id: a\r\nx-request-id: b\r\n"), Answer(200)),
        ("trace of no version", head("traceparent: ff-0-0-0\r\n"), Answer(200)),
        ("trace of 8 KB", head(format!("traceparent: 00-{}\r\n", "a".repeat(8_192))), Answer(200)),
        ("trace beyond ASCII", head(b"traceparent: 00-\xc3\xa4-\xff-01\r\n"), Answer(200)),
        ("trace with signs", head(format!("traceparent: 00-+{:a<31}-+{:b<15}-+1\r\n", "", "")), Answer(200)),
        ("state of a trace", head(format!("tracestate: {}\r\n", "a=b,".repeat(1_000))), Answer(200)),
        ("addresses of clients", head(format!("x-forwarded-for: {}\r\n", "::1,".repeat(1_000))), Answer(200)),
    ]
}

fn lengths() -> Vec<Row> {
    let length = |value: &str| framed(&format!("content-length: {value}\r\n"), TASK);
    vec![
        ("no length", framed("", ""), Answer(400)),
        ("negative length", length("-1"), Bare(400)),
        ("length with a sign", length("+13"), Bare(400)),
        ("length in hexadecimal", length("0xd"), Bare(400)),
        ("length with an exponent", length("1e1"), Bare(400)),
        ("length with a fraction", length("13.0"), Bare(400)),
        ("empty length", length(""), Bare(400)),
        ("list of lengths", length("13, 13"), Bare(400)),
        ("one length twice", framed("content-length: 13\r\ncontent-length: 13\r\n", TASK), Answer(201)),
        ("two lengths", framed("content-length: 13\r\ncontent-length: 0\r\n", TASK), Bare(400)),
        ("length of 8 EiB", length("9223372036854775807"), Answer(413)),
        ("length of 16 EiB", length("18446744073709551615"), Bare(431)),
        ("length beyond any", length("99999999999999999999"), Bare(400)),
    ]
}

fn codings() -> Vec<Row> {
    let coded = |value: &str| {
        framed(&format!("transfer-encoding: {value}\r\n"), &format!("d\r\n{TASK}\r\n0\r\n\r\n"))
    };
    let both = format!("0\r\n\r\n{SMUGGLED}");
    vec![
        ("coding in capitals", coded("CHUNKED"), Answer(201)),
        ("coding twice", coded("chunked, chunked"), Answer(400)),
        ("coding in two lines", coded("chunked\r\ntransfer-encoding: chunked"), Answer(400)),
        ("compressed coding", coded("gzip, chunked"), Answer(400)),
        ("coding with more after it", coded("chunked, identity"), Bare(400)),
        ("unknown coding", coded("xchunked"), Bare(400)),
        ("no coding", coded("identity"), Bare(400)),
        ("coding with a parameter", coded("chunked;q=1"), Bare(400)),
        ("coding in quotes", coded("\"chunked\""), Bare(400)),
        ("coding after a vertical tab", coded("\x0bchunked"), Bare(400)),
        (
            "coding of old",
            b"POST /v1/tasks HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            Bare(400),
        ),
        (
            "length, then coding",
            framed("content-length: 5\r\ntransfer-encoding: chunked\r\n", &both),
            Answer(400),
        ),
        (
            "coding, then length",
            framed("transfer-encoding: chunked\r\ncontent-length: 5\r\n", &both),
            Answer(400),
        ),
        (
            "coding hidden by a space",
            framed("content-length: 5\r\ntransfer-encoding : chunked\r\n", &both),
            Bare(400),
        ),
        (
            "coding hidden by a fold",
            framed("content-length: 5\r\nx: y\r\n transfer-encoding: chunked\r\n", &both),
            Bare(400),
        ),
        (
            "coding hidden by a LF",
            framed("content-length: 5\r\nx: y\ntransfer-encoding: chunked\r\n", &both),
            Answer(400),
        ),
        (
            "coding hidden by a CR",
            framed("content-length: 5\r\nx: y\rtransfer-encoding: chunked\r\n", &both),
            Bare(400),
        ),
    ]
}

fn chunks() -> Vec<Row> {
    let chunk = |start: &str| chunked(&format!("{start}{TASK}\r\n0\r\n\r\n{SMUGGLED}"));
    vec![
        ("chunk without a size", chunk("\r\n"), Answer(400)),
        ("chunk size that is no number", chunk("zz\r\n"), Answer(400)),
        ("negative chunk size", chunk("-d\r\n"), Answer(400)),
        ("chunk size with a prefix", chunk("0xd\r\n"), Answer(400)),
        ("chunk size of 17 digits", chunk("1000000000000000d\r\n"), Answer(400)),
        ("chunk size with a gap", chunk("0 d\r\n"), Answer(400)),
        ("chunk size with a NUL", chunk("d\0\r\n"), Answer(400)),
        ("chunk size before a LF", chunk("d\n"), Answer(400)),
        ("chunk extension with a LF", chunk("d;a\nb\r\n"), Answer(400)),
        ("chunk extension", chunked(&format!("d;a=b\r\n{TASK}\r\n0;c\r\n\r\n")), Answer(201)),
        (
            "chunk that is longer than said",
            chunked(&format!("3\r\n{TASK}\r\n0\r\n\r\n{SMUGGLED}")),
            Answer(400),
        ),
        ("chunk without its end", chunked(&format!("d\r\n{TASK}0\r\n\r\n{SMUGGLED}")), Answer(400)),
        ("chunk of 16 EiB", chunked(&format!("ffffffffffffffff\r\n{}", "x".repeat(1 << 21))), Answer(413)),
        (
            "trailer that frames",
            chunked(&format!("d\r\n{TASK}\r\n0\r\ncontent-length: 9\r\n\r\n")),
            Answer(201),
        ),
        (
            "trailer that is no line",
            chunked(&format!("d\r\n{TASK}\r\n0\r\nx y\r\n\r\n{SMUGGLED}")),
            Answer(400),
        ),
        (
            "trailers of 1 MB",
            chunked(&format!("d\r\n{TASK}\r\n0\r\n{}\r\n", "x: y\r\n".repeat(170_000))),
            Answer(400),
        ),
        ("body where none is due", sent("GET", "/health", "", format!("{SMUGGLED}\r\n")), Answer(200)),
        ("preface of HTTP/2, cut", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(), Bare(400)),
    ]
}

fn targets() -> Vec<Row> {
    let with = |query: &str| get(format!("/v1/tasks?{query}"));
    let task = |id: &str| get(format!("/v1/tasks/{id}"));
    vec![
        ("path up and out", get("/v1/../health"), Answer(404)),
        ("escaped path up and out", get("/v1/%2e%2e/health"), Answer(404)),
        ("overlong escape", get("/v1/%c0%ae%c0%ae/health"), Answer(404)),
        ("escape twice", get("/%2568ealth"), Answer(404)),
        ("escaped slash", get("/v1%2ftasks"), Answer(404)),
        ("half an escape", get("/v1/tasks/%"), Answer(404)),
        ("escape of half a character", get("/v1/tasks/%ff"), Answer(404)),
        ("two slashes", get("//v1/tasks"), Answer(404)),
        ("parameter in the path", get("/v1/tasks;a=b"), Answer(404)),
        ("backslash", get("/v1\\tasks"), Answer(404)),
        ("id that is too long", task(&"0".repeat(10_000)), Answer(404)),
        ("id with a digit too much", task("018f2f9c-7b1e-7cc0-98c4-dc0c0c07398f0"), Answer(404)),
        ("id of zeros", task("00000000-0000-0000-0000-000000000000"), Answer(404)),
        ("id with a quote", task("'%20OR%201=1;--"), Answer(404)),
        ("id in braces", task("%7B018f2f9c-7b1e-7cc0-98c4-dc0c0c07398f%7D"), Answer(404)),
        ("limit with an exponent", with("limit=1e3"), Answer(422)),
        ("limit with an underscore", with("limit=1_0"), Answer(422)),
        ("limit with a fraction", with("limit=1.0"), Answer(422)),
        ("limit beyond any integer", with("limit=99999999999999999999"), Answer(422)),
        ("limit with a space", with("limit=+1"), Answer(422)),
        ("limit in hexadecimal", with("limit=0x10"), Answer(422)),
        ("limit in other digits", with("limit=%D9%A3"), Answer(422)),
        ("limit with a NUL", with("limit=1%00"), Answer(422)),
        ("two limits", with("limit=1&limit=2"), Answer(422)),
        ("list of limits", with("limit[]=1"), Answer(422)),
        ("parameter without a name", with("=1"), Answer(422)),
        ("parameter named NUL", with("%00=1"), Answer(422)),
        ("parameter beyond Unicode", with("status=%ff%fe"), Answer(422)),
        ("overlong parameter", with("status=%c1%af"), Answer(422)),
        ("status in capitals", with("status=OPEN"), Answer(422)),
        ("nothing between separators", with("&&limit=1&"), Answer(200)),
        ("empty cursor", with("cursor="), Answer(422)),
        ("cursor in base64", with("cursor=eyJpZCI6MX0%3D"), Answer(422)),
        ("cursor that is too short", with("cursor=018f2f9c-7b1e-7cc0-98c4"), Answer(422)),
        ("cursor that is too long", with(&format!("cursor={}", "f".repeat(10_000))), Answer(422)),
        ("cursor with a quote", with("cursor=';DROP%20TABLE%20tasks;--"), Answer(422)),
        // Ids of other UUID versions sort among ours, so this is a position in the list like any other.
        ("cursor of another version", with("cursor=9b2c1f7e-3a4d-4e5f-8a6b-7c8d9e0f1a2b"), Answer(200)),
    ]
}

fn bodies() -> Vec<Row> {
    let post = |lines: &str, body: &str| sent("POST", "/v1/tasks", lines, body);
    let json = "content-type: application/json\r\n";
    let deep = |start: &str| body(format!("{{\"title\":{}", start.repeat(10_000)));
    vec![
        (
            "compressed body",
            post(&format!("{json}content-encoding: gzip\r\n"), "\x1f\u{8b}\x08"),
            Answer(415),
        ),
        ("body said to be compressed", post(&format!("{json}content-encoding: gzip\r\n"), TASK), Answer(415)),
        (
            "body in no encoding, and in one",
            post(&format!("{json}content-encoding: identity\r\ncontent-encoding: gzip\r\n"), TASK),
            Answer(415),
        ),
        ("body in no encoding", post(&format!("{json}content-encoding: identity\r\n"), TASK), Answer(201)),
        ("type with junk", post("content-type: application/jsonx\r\n", TASK), Answer(415)),
        ("type in a list", post("content-type: text/plain, application/json\r\n", TASK), Answer(415)),
        (
            "charset, which JSON has none of",
            post("content-type: application/json;charset=x\r\n", TASK),
            Answer(201),
        ),
        ("half a character", body(b"{\"title\":\"\xff\"}"), Answer(400)),
        ("overlong character", body(b"{\"title\":\"\xc0\xaf\"}"), Answer(400)),
        ("UTF-16", body(b"\xff\xfe{\0}\0"), Answer(400)),
        ("byte order mark", body("\u{feff}{\"title\":\"a\"}"), Answer(400)),
        ("half of a pair", body(r#"{"title":"\ud800"}"#), Answer(400)),
        ("pair in the wrong order", body(r#"{"title":"\udc00\ud800"}"#), Answer(400)),
        ("escape that is none", body(r#"{"title":"\x41"}"#), Answer(400)),
        ("NUL in a string", body("{\"title\":\"a\0b\"}"), Answer(400)),
        ("escaped NUL", body(r#"{"title":"a\u0000b"}"#), Answer(422)),
        ("line end in a string", body("{\"title\":\"a\nb\"}"), Answer(400)),
        ("single quotes", body("{'title':'a'}"), Answer(400)),
        ("comment", body("{\"title\":\"a\"/**/}"), Answer(400)),
        ("comma too much", body(r#"{"title":"a",}"#), Answer(400)),
        ("number that is none", body(r#"{"title":NaN}"#), Answer(400)),
        ("number with zeros", body(r#"{"title":007}"#), Answer(400)),
        ("number without end", body(format!("{{\"title\":{}}}", "9".repeat(100_000))), Answer(400)),
        ("10,000 objects deep", deep("{\"a\":"), Answer(422)),
        ("10,000 arrays deep", deep("["), Answer(422)),
        ("10,000 arrays", body("[".repeat(10_000)), Answer(422)),
        ("field twice", body(r#"{"title":"a","title":"b"}"#), Answer(422)),
        ("field twice, once escaped", body(r#"{"title":"a","\u0074itle":"b"}"#), Answer(422)),
        ("field in capitals", body(r#"{"Title":"a"}"#), Answer(422)),
        ("field of the answer", body(r#"{"title":"a","version":7}"#), Answer(422)),
        ("prototype", body(r#"{"title":"a","__proto__":{}}"#), Answer(422)),
        ("fields without names", body(r#"["a"]"#), Answer(422)),
        ("fields without names, after space", body("\r\n[\"a\", null]"), Answer(422)),
        ("no value", body("null"), Answer(422)),
        ("true", body("true"), Answer(422)),
        ("number", body("1e400"), Answer(400)),
        ("title that is an object", body(r#"{"title":{"title":"a"}}"#), Answer(422)),
        ("title of spaces of all kinds", body("{\"title\":\"\u{a0}\u{2003}\u{3000}\"}"), Answer(422)),
        ("two values", body("{\"title\":\"a\"}{\"title\":\"b\"}"), Answer(400)),
        ("junk after the value", body("{\"title\":\"a\"}\0"), Answer(400)),
        ("body of the limit", body([TASK, &" ".repeat((1 << 20) - TASK.len())].concat()), Answer(201)),
        ("body beyond the limit", body(" ".repeat((1 << 20) + 1)), Answer(413)),
    ]
}

/// Conditional requests for a task whose version is 1 and stays 1.
fn conditions(task: &str) -> Vec<Row> {
    let patch = |tag: &str| {
        let lines = format!("content-type: application/json\r\nif-match: {tag}\r\n");
        sent("PATCH", task, &lines, r#"{"title":""}"#)
    };
    let delete = |tag: &str| sent("DELETE", task, &format!("if-match: {tag}\r\n"), "");
    vec![
        ("tag without quotes", delete("1"), Answer(400)),
        ("empty tag", delete(""), Answer(400)),
        ("tag beyond ASCII", delete("\"ä\""), Answer(400)),
        ("half a tag", delete("\"1"), Answer(400)),
        ("tag of no version", delete("\"\""), Answer(412)),
        ("two tags in two lines", delete("\"1\"\r\nif-match: \"1\""), Answer(412)),
        ("weak tag", delete("W/\"1\""), Answer(412)),
        ("tag of 20 digits", delete("\"99999999999999999999\""), Answer(412)),
        ("negative tag", delete("\"-1\""), Answer(412)),
        ("tag with a sign", delete("\"+1\""), Answer(412)),
        ("tag with a zero", delete("\"01\""), Answer(412)),
        ("tag with a quote", delete("\"1' OR 1=1\""), Answer(412)),
        ("any tag, and no title", patch("*"), Answer(422)),
        ("patch of no type", sent("PATCH", task, "", "{}"), Answer(415)),
        (
            "patch of fields without names",
            sent("PATCH", task, "content-type: application/json\r\n", "[]"),
            Answer(422),
        ),
        (
            "id that is patched",
            sent("PATCH", task, "content-type: application/json\r\n", r#"{"id":1}"#),
            Answer(422),
        ),
        (
            "completed with junk in the tag",
            sent("POST", &format!("{task}/complete"), "if-match: x\r\n", ""),
            Answer(400),
        ),
    ]
}

/// Sends one request. Returns a description of the outcome if it is not the expected one.
async fn judge(app: &TestApp, (name, bytes, expected): &Row) -> Option<String> {
    let mut wire = app.connect().await;
    // The service need not read all of a request that it refuses early.
    wire.try_send(bytes).await;
    let answer = wire.answer_or_end().await;
    let status = answer.as_ref().map(|answer| answer.status);
    match (expected, answer) {
        (Bare(expected), Some(answer)) if answer.status == *expected => {
            assert_eq!((answer.body.as_str(), answer.header("x-request-id")), ("", ""), "{name}");
            assert_eq!(wire.closed().await, "", "{name}: nothing can be told from what follows");
        }
        (Answer(expected), Some(answer)) if answer.status == *expected => {
            assert!(!answer.header("x-request-id").is_empty(), "{name}: {answer:?}");
            if *expected >= 400 {
                problem(&answer, *expected, category(*expected));
            }
        }
        _ => return Some(format!("{name}: {status:?} and not {expected:?}")),
    }
    if bytes.ends_with(SMUGGLED.as_bytes()) {
        assert!(!wire.closed().await.contains("HTTP/1.1"), "{name}: a second request was answered");
    }
    None
}

fn category(status: u16) -> &'static str {
    match status {
        404 => "not_found",
        405 => "method_not_allowed",
        412 => "conflict",
        413 => "too_large",
        _ => "validation",
    }
}

#[tokio::test]
async fn what_is_malformed_is_refused_and_harms_nothing() {
    let app = TestApp::spawn(&[]).await;
    let task = path_of(&app.create("a").await);
    let tables =
        [request_lines(), heads(), lengths(), codings(), chunks(), targets(), bodies(), conditions(&task)];
    let mut wrong = Vec::new();
    for row in tables.iter().flatten() {
        wrong.extend(judge(&app, row).await);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(app.get(&task).await.json()["version"], 1, "nothing of it came through");
    assert_eq!(app.get("/ready").await.status, 200);
    let metrics =
        eventually(async || app.metrics().await, |text| text.contains("http_requests_in_flight 0\n")).await;
    let failed = metrics.lines().find(|line| line.contains("status=\"5"));
    assert_eq!(failed, None, "{metrics}");
    assert!(metrics.contains("panics_total 0\n"), "{metrics}");
    let ended = app.stop().await;
    assert_eq!((ended.code, ended.err.as_slice()), (Some(0), [].as_slice()));
    assert!(!ended.out.iter().any(|line| line.contains("smuggled")), "{:#?}", ended.out);
}
