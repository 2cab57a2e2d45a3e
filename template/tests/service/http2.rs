//! HTTP/2 frame by frame, for what client libraries won't send: floods that must not affect other clients, and a
//! shutdown that no client can hold up.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::app::{TestApp, eventually};
use crate::lifecycle::SHORT_DRAIN;
use crate::process::PATIENCE;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const METHOD_GET: u8 = 0x82;
const METHOD_POST: u8 = 0x83;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A received frame.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// The bytes of a frame (RFC 9113, 4.1).
fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header fields of a request, from HPACK's static table except for the values of path and authority
/// (RFC 7541, 6.1 and 6.2.2).
fn fields(method: u8, path: &str) -> Vec<u8> {
    const SCHEME_HTTP: u8 = 0x86;
    const PATH: u8 = 0x04;
    const AUTHORITY: u8 = 0x01;
    [&[method, SCHEME_HTTP, PATH], text(path).as_slice(), &[AUTHORITY], &text("test")].concat()
}

/// A string literal without Huffman coding (RFC 7541, 5.2).
fn text(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("a short text")], text.as_bytes()].concat()
}

/// A complete request without a body.
fn request(stream: u32, path: &str) -> Vec<u8> {
    encode(HEADERS, END_STREAM | END_HEADERS, stream, &fields(METHOD_GET, path))
}

/// A connection whose prefaces have been exchanged.
struct Connection(TcpStream);

impl Connection {
    async fn open(app: &TestApp) -> Self {
        Self::over(TcpStream::connect(app.address).await.expect("a connection")).await
    }

    /// Opens one whose client takes little at a time, although its windows admit everything.
    async fn open_slow(app: &TestApp) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(16 * 1024).expect("a small buffer");
        let mut connection = Self::over(socket.connect(app.address).await.expect("a connection")).await;
        let wide = encode(SETTINGS, 0, 0, &LARGEST_INITIAL_WINDOW);
        let more = encode(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 0xffff).to_be_bytes());
        connection.send(&[wide, more].concat()).await;
        connection
    }

    async fn over(stream: TcpStream) -> Self {
        let mut connection = Self(stream);
        let opening = [PREFACE, &encode(SETTINGS, 0, 0, &[]), &encode(SETTINGS, ACK, 0, &[])].concat();
        connection.0.write_all(&opening).await.expect("the service takes the preface");
        let settings = connection.frame().await.expect("a frame");
        assert_eq!((settings.kind, settings.flags), (SETTINGS, 0), "{settings:?}");
        assert!(settings.payload.chunks(6).any(|one| one == MAX_CONCURRENT_STREAMS), "{settings:?}");
        // The service sends its own preface first, and closes without a GOAWAY until it has read the client's.
        let acknowledged = connection.frame_of(SETTINGS).await.expect("a frame");
        assert_eq!(acknowledged.flags, ACK, "{acknowledged:?}");
        connection
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("the service takes the bytes");
    }

    /// Sends to a service that may have closed the connection. Returns whether everything was sent.
    async fn try_send(&mut self, bytes: &[u8]) -> bool {
        timeout(PATIENCE, self.0.write_all(bytes)).await.is_ok_and(|sent| sent.is_ok())
    }

    /// Reads the next frame. Returns none once the connection has ended.
    async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        let read = timeout(PATIENCE, self.0.read_exact(&mut head)).await;
        read.expect("neither a frame nor an end in time").ok()?;
        let [_, _, _, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// Reads up to the next frame of this kind. Returns none once the connection has ended.
    async fn frame_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// Reads to the end and answers pings, as a client should. Returns the last stream and the error of each GOAWAY.
    async fn read_goaways(&mut self) -> Vec<(u32, u32)> {
        let mut told = Vec::new();
        while let Some(frame) = self.frame().await {
            let number =
                |at: usize| frame.payload[at..at + 4].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
            match frame.kind {
                GOAWAY => told.push((number(0), number(4))),
                PING if frame.flags == 0 => self.send(&encode(PING, ACK, 0, &frame.payload)).await,
                _ => {}
            }
        }
        told
    }

    /// Requests a path and returns the first byte of the response's fields, which is the status.
    async fn get(&mut self, stream: u32, path: &str) -> Option<u8> {
        self.send(&request(stream, path)).await;
        let answer = self.frame_of(HEADERS).await?;
        assert_eq!(answer.stream, stream, "{answer:?}");
        answer.payload.first().copied()
    }
}

/// `ENHANCE_YOUR_CALM`, which is expected unless the flood was absorbed.
const ENHANCE_YOUR_CALM: [u8; 4] = 11_u32.to_be_bytes();

/// The setting of this name, with the value 100.
const MAX_CONCURRENT_STREAMS: [u8; 6] = [0, 3, 0, 0, 0, 100];

/// The setting `INITIAL_WINDOW_SIZE`, with the value 0.
const NO_INITIAL_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
/// The same setting, with the value 1.
const SMALLEST_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 1];
/// The same setting, with its largest value.
const LARGEST_INITIAL_WINDOW: [u8; 6] = [0, 4, 0x7f, 0xff, 0xff, 0xff];

/// `:status: 200` in the static table, and `:status: 400`.
const OK: u8 = 0x88;
const BAD_REQUEST: u8 = 0x8c;

/// The resident memory of the process, in bytes.
async fn memory(app: &TestApp) -> f64 {
    app.sample("process_resident_memory_bytes").await.expect("the metric")
}

/// Checks that a flood on one connection has affected neither other clients nor memory.
async fn assert_unharmed(app: &TestApp, before: f64) {
    let began = Instant::now();
    assert_eq!(app.get("/v1/tasks").await.status, 200, "another client is served");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let mut connection = Connection::open(app).await;
    assert_eq!(connection.get(1, "/health").await, Some(OK), "HTTP/2 is served too");
    eventually(async || app.metrics().await, |text| text.contains("http_requests_in_flight 0\n")).await;
    let grown = memory(app).await - before;
    assert!(grown < 64e6, "grown by {grown} bytes");
}

#[tokio::test]
async fn requests_share_a_connection() {
    let app = TestApp::spawn(&[]).await;
    let mut connection = Connection::open(&app).await;
    for stream in [1, 3, 5] {
        assert_eq!(connection.get(stream, "/v1/tasks").await, Some(OK));
    }
}

#[tokio::test]
async fn last_byte_does_not_wait_until_the_rest_is_acknowledged() {
    let app = TestApp::spawn(&[]).await;
    let mut connection = Connection::open(&app).await;
    // The kernel of a client that has nothing to send acknowledges after 40 ms. A slow machine may take longer anyway.
    let (began, mut fastest, mut stream) = (Instant::now(), PATIENCE, 1);
    while fastest > Duration::from_millis(30) {
        assert!(began.elapsed() < PATIENCE, "{fastest:?}");
        let asked = Instant::now();
        assert_eq!(connection.get(stream, "/v1/tasks").await, Some(OK));
        while connection.frame_of(DATA).await.expect("the rest").flags & END_STREAM == 0 {}
        fastest = fastest.min(asked.elapsed());
        stream += 2;
    }
}

#[tokio::test]
async fn client_may_connect_ahead_of_its_first_request() {
    let app = TestApp::spawn(&[("APP__HTTP__HEADER_READ_TIMEOUT", "300ms")]).await;
    let mut connection = Connection::open(&app).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(connection.get(1, "/v1/tasks").await, Some(OK));
}

#[tokio::test]
async fn authority_with_a_user_in_it_is_refused() {
    let app = TestApp::spawn(&[]).await;
    let mut connection = Connection::open(&app).await;
    let mut head = fields(METHOD_GET, "/v1/tasks");
    let name = head.len() - 4;
    head[name..].copy_from_slice(b"u@st");
    connection.send(&encode(HEADERS, END_STREAM | END_HEADERS, 1, &head)).await;
    let answer = connection.frame_of(HEADERS).await.expect("an answer");
    assert_eq!(answer.payload.first(), Some(&BAD_REQUEST), "{answer:?}");
}

#[tokio::test]
async fn authority_and_host_that_differ_are_refused() {
    const HOST: &[u8] = &[0x0f, 0x17];
    let app = TestApp::spawn(&[]).await;
    let mut connection = Connection::open(&app).await;
    for (stream, host, expected) in [(1, "test", OK), (3, "TEST", OK), (5, "other", BAD_REQUEST)] {
        let head = [&fields(METHOD_GET, "/v1/tasks")[..], HOST, &text(host)].concat();
        connection.send(&encode(HEADERS, END_STREAM | END_HEADERS, stream, &head)).await;
        let answer = connection.frame_of(HEADERS).await.expect("an answer");
        assert_eq!(answer.payload.first(), Some(&expected), "{host}: {answer:?}");
    }
}

#[tokio::test]
async fn head_of_more_than_16_kib_is_refused() {
    let app = TestApp::spawn(&[]).await;
    let mut connection = Connection::open(&app).await;
    // Empty fields, of 33 bytes each as the protocol counts them (RFC 9113, 6.5.2).
    for (stream, count, taken) in [(1, 480, true), (3, 500, false)] {
        let head = [fields(METHOD_GET, "/health"), [0x00, 0x01, b'x', 0x00].repeat(count)].concat();
        connection.send(&encode(HEADERS, END_STREAM | END_HEADERS, stream, &head)).await;
        let answer = connection.frame_of(HEADERS).await.expect("an answer");
        let has_body = answer.flags & END_STREAM == 0;
        assert_eq!((answer.payload[0] == OK, has_body), (taken, taken), "{count}: {answer:?}");
    }
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_harm_nobody() {
    let app = TestApp::spawn(&[]).await;
    let before = memory(&app).await;
    let mut hostile = Connection::open(&app).await;
    for batch in 0..20 {
        let streams = (0..100).map(|number| 2 * (batch * 100 + number) + 1);
        let cancel = 8_u32.to_be_bytes();
        let flood = streams.flat_map(|stream| {
            [request(stream, "/v1/tasks"), encode(RST_STREAM, 0, stream, &cancel)].concat()
        });
        if !hostile.try_send(&flood.collect::<Vec<_>>()).await {
            break;
        }
    }
    if let Some(goodbye) = hostile.frame_of(GOAWAY).await {
        assert_eq!(goodbye.payload[4..8], ENHANCE_YOUR_CALM, "{goodbye:?}");
    }
    assert_unharmed(&app, before).await;
    assert_eq!(app.stop().await.code, Some(0));
}

#[tokio::test]
async fn head_that_is_continued_for_ever_ends_the_connection() {
    let app = TestApp::spawn(&[]).await;
    let before = memory(&app).await;
    let mut hostile = Connection::open(&app).await;
    hostile.send(&encode(HEADERS, END_STREAM, 1, &fields(METHOD_GET, "/health"))).await;
    // Fields that are not indexed and have a new name of one byte, 10 KB of them per frame.
    let more = encode(CONTINUATION, 0, 1, &[0x00, 0x01, b'x', 0x00].repeat(2_500));
    let mut frames = 0;
    while frames < 10_000 && hostile.try_send(&more).await {
        frames += 1;
    }
    assert!(frames < 10_000, "100 MB of a head were taken");
    assert_unharmed(&app, before).await;
    assert_eq!(app.stop().await.code, Some(0));
}

#[tokio::test]
async fn client_is_told_to_go_and_goes() {
    let app = TestApp::spawn(&[]).await;
    let mut idle = Connection::open(&app).await;
    assert_eq!(idle.get(1, "/health").await, Some(OK));
    let (ended, told) = tokio::join!(app.stop(), idle.read_goaways());
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    // The first GOAWAY announces the shutdown; the second, a round trip later, names the last request (RFC 9113, 6.8).
    assert_eq!(told, [(0x7fff_ffff, 0), (1, 0)]);
}

#[tokio::test]
async fn request_that_crosses_the_goodbye_is_answered() {
    const CONTENT_TYPE: &[u8] = &[0x0f, 0x10];
    let app = TestApp::spawn(&[("APP__HTTP__IDLE_TIMEOUT", "3s")]).await;
    let mut idle = Connection::open(&app).await;
    assert_eq!(idle.get(1, "/health").await, Some(OK));
    assert!(idle.frame_of(GOAWAY).await.is_some(), "it was told to go");
    let head = [&fields(METHOD_POST, "/v1/tasks"), CONTENT_TYPE, &text("application/json")].concat();
    idle.send(&encode(HEADERS, END_HEADERS, 3, &head)).await;
    // It may take as long as any other request.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    idle.send(&encode(DATA, END_STREAM, 3, br#"{"title":"a"}"#)).await;
    assert_eq!(idle.frame_of(HEADERS).await.expect("an answer").stream, 3);
    assert_eq!(app.get("/v1/tasks").await.json()["items"][0]["title"], "a");
}

#[tokio::test]
async fn client_that_heeds_no_goodbye_can_not_hold_up_the_exit() {
    let mut app = TestApp::spawn(&SHORT_DRAIN).await;
    let mut deaf = Connection::open(&app).await;
    // A head that is never completed.
    deaf.send(&encode(HEADERS, END_STREAM, 1, &fields(METHOD_GET, "/health"))).await;
    let mut eager = Connection::open(&app).await;
    let began = Instant::now();
    app.process.signal(Signal::TERM);
    app.process.event("shutdown.begin").await;
    let mut asking = 1;
    while eager.try_send(&request(asking, "/v1/tasks")).await && began.elapsed() < PATIENCE {
        asking += 2;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ended = app.process.ended().await;
    let took = began.elapsed();
    assert_eq!(ended.code, Some(3), "{ended:#?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(deaf.frame_of(GOAWAY).await.is_some(), "it was told");
}

/// Creates tasks that take 200 KB when they are listed.
async fn create_long_tasks(app: &TestApp) {
    for _ in 0..20 {
        let task = json!({ "title": "long", "description": "x".repeat(10_000) });
        assert_eq!(app.post("/v1/tasks", &task).await.status, 201);
    }
}

/// Otherwise their memory would be given to others, and a drain would not wait for them.
#[tokio::test]
async fn answers_are_in_flight_until_a_client_with_wide_windows_has_taken_them() {
    let app = TestApp::spawn(&[("APP__HTTP__BODY_TIMEOUT", "60s")]).await;
    create_long_tasks(&app).await;
    let mut greedy = Connection::open_slow(&app).await;
    let requests = (0..60).map(|number| request(2 * number + 1, "/v1/tasks?limit=20"));
    greedy.send(&requests.collect::<Vec<_>>().concat()).await;
    // Frames of them come in turns, so most are not at their end yet.
    for _ in 0..50 {
        assert!(greedy.frame_of(DATA).await.is_some(), "the answers come");
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let in_flight = app.sample("http_requests_in_flight").await;
    assert!(in_flight >= Some(20.0), "{in_flight:?}");
}

#[tokio::test]
async fn last_answer_before_the_exit_is_taken_whole() {
    let app = TestApp::spawn(&[]).await;
    create_long_tasks(&app).await;
    let mut slow = Connection::open_slow(&app).await;
    assert_eq!(slow.get(1, "/health").await, Some(OK));
    app.process.signal(Signal::TERM);
    slow.frame_of(GOAWAY).await.expect("it is told to go");
    let ping = slow.frame_of(PING).await.expect("it is asked whether it knows");
    let last = [request(3, "/v1/tasks?limit=20"), encode(PING, ACK, 0, &ping.payload)].concat();
    slow.send(&last).await;
    loop {
        let frame = slow.frame().await.expect("it is taken to its end");
        if (frame.kind, frame.stream) == (DATA, 3) && frame.flags & END_STREAM != 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        slow.try_send(&encode(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())).await;
    }
    drop(slow);
    assert_eq!(app.process.ended().await.code, Some(0));
}

#[tokio::test]
async fn client_that_says_nothing_does_not_cut_the_drain_short() {
    for timeout in ["300ms", "60s"] {
        let app = TestApp::spawn(&[("APP__HTTP__BODY_TIMEOUT", timeout)]).await;
        let mut silent = Connection::open(&app).await;
        assert_eq!(silent.get(1, "/health").await, Some(OK));
        let ended = app.stop().await;
        assert_eq!(ended.code, Some(0), "{timeout}: {ended:#?}");
        drop(silent);
    }
}

#[tokio::test]
async fn client_that_opens_no_window_for_its_answer_is_dropped() {
    let app = TestApp::spawn(&[("APP__HTTP__BODY_TIMEOUT", "300ms")]).await;
    for _ in 0..10 {
        app.post("/v1/tasks", &json!({ "title": "long", "description": "x".repeat(10_000) })).await;
    }
    // The windows admit nothing of the body, or its first 64 KiB.
    for windows in [encode(SETTINGS, 0, 0, &NO_INITIAL_WINDOW), Vec::new()] {
        let mut stingy = Connection::open(&app).await;
        let began = Instant::now();
        stingy.send(&[windows, request(1, "/v1/tasks")].concat()).await;
        // Other requests on the same connection get the same time again.
        assert!(!stingy.read_goaways().await.is_empty(), "it says goodbye");
        let took = Duration::from_millis(600)..Duration::from_secs(3);
        assert!(took.contains(&began.elapsed()), "{:?}", began.elapsed());
    }
    // Sending more requests gains no time, nor does a window that admits the first byte of each response.
    for setting in [NO_INITIAL_WINDOW, SMALLEST_WINDOW] {
        let mut stingy = Connection::open(&app).await;
        stingy.send(&encode(SETTINGS, 0, 0, &setting)).await;
        let (began, mut stream) = (Instant::now(), 1);
        while stingy.try_send(&request(stream, "/health")).await {
            assert!(began.elapsed() < Duration::from_secs(3), "{stream}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream += 2;
        }
    }
    assert_eq!(app.stop().await.code, Some(0));
}
