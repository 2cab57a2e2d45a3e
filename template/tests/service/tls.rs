//! Calls over TLS: whoever is called must have a certificate that one of the system's roots vouches for.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

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
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], made.signing_key.into());
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
        Self { url, certificate: made.cert.pem() }
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
