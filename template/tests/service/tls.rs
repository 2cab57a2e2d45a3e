//! Calls over TLS: whoever is called must have a certificate that one of the system's roots vouches for.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::app::TestApp;
use crate::process::Launch;

/// A server that answers every request with 200, and proves who it is with a certificate of its own making.
#[derive(Debug)]
pub struct Server {
    pub url: String,
    /// As PEM.
    pub certificate: String,
}

impl Server {
    /// It ends with the test program.
    pub fn start() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let certificate = self_signed(&Ed25519KeyPair::from_pkcs8(key.as_ref()).expect("a key"));
        let text = BASE64.encode(&certificate);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let key = PrivatePkcs8KeyDer::from(key.as_ref().to_vec());
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], key.into());
        let config = Arc::new(config.expect("a certificate that fits its key"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let connection = ServerConnection::new(config.clone()).expect("a connection");
                // Fails where the client breaks off, as it does once it has refused the certificate.
                thread::spawn(move || answer(StreamOwned::new(connection, stream)));
            }
        });
        Self { url, certificate: pem }
    }

    /// Makes this server's certificate the only root of the service.
    pub fn is_trusted_by(&self, launch: Launch) -> Launch {
        launch.set(&[("SSL_CERT_FILE", "roots.pem")]).file("roots.pem", &self.certificate)
    }
}

fn answer(mut stream: StreamOwned<ServerConnection, TcpStream>) -> io::Result<u64> {
    stream.read_exact(&mut [0])?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    io::copy(&mut stream, &mut io::sink())
}

/// A certificate for 127.0.0.1 until 2049, issued by its own key (RFC 5280, 4.1).
fn self_signed(key: &Ed25519KeyPair) -> Vec<u8> {
    const VERSION_AND_SERIAL: &[u8] = &[0xa0, 3, 2, 1, 2, 2, 1, 1];
    const ED25519: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
    const NO_NAME: &[u8] = &[0x30, 0];
    const ALTERNATIVE_NAMES: &[u8] = &[6, 3, 0x55, 0x1d, 0x11];
    const ADDRESS: &[u8] = &[0x30, 6, 0x87, 4, 127, 0, 0, 1];
    let [sequence, bits, bytes, time, third] = [0x30, 3, 4, 0x17, 0xa3];
    let validity = der(sequence, &[&der(time, &[b"250101000000Z"]), &der(time, &[b"491231235959Z"])]);
    let public = der(sequence, &[ED25519, &der(bits, &[&[0], key.public_key().as_ref()])]);
    let names = der(sequence, &[ALTERNATIVE_NAMES, &der(bytes, &[ADDRESS])]);
    let extensions = der(third, &[&der(sequence, &[&names])]);
    let parts = [VERSION_AND_SERIAL, ED25519, NO_NAME, &validity, NO_NAME, &public, &extensions];
    let signed = der(sequence, &parts);
    let signature = der(bits, &[&[0], key.sign(&signed).as_ref()]);
    der(sequence, &[&signed, ED25519, &signature])
}

/// A value in DER (X.690): what it is, its length, and its parts.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    let length = u16::try_from(value.len()).expect("a short value").to_be_bytes();
    let length = match length {
        [0, short @ ..0x80] => vec![short],
        [0, long] => vec![0x81, long],
        longer => [&[0x82], &longer[..]].concat(),
    };
    [&[tag], length.as_slice(), &value].concat()
}

#[tokio::test]
async fn webhook_is_delivered_only_to_a_receiver_that_a_root_vouches_for() {
    let receiver = Server::start();
    for (root, event) in [(&Server::start(), "job.retry"), (&receiver, "job.done")] {
        let launch = Launch::new(&[("APP__WEBHOOK__URL", &receiver.url)]);
        let mut app = TestApp::launch(root.is_trusted_by(launch)).await;
        app.complete(&app.create("a").await).await;
        let told = app.process.event(event).await;
        let refused = told["reason"].to_string().contains("invalid peer certificate");
        assert_eq!(refused, event == "job.retry", "{told}");
    }
}
