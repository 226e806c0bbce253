//! Connecting: who is let in, what is refused by name, and that nothing leaves without TLS where it is asked for.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::bus::{Bus, BusError, Queue, Service};
use bus_nats::{NatsBus, Settings, StartError};
use schema::limits::MESSAGE_MAX;
use schema::messages::{About, Message, Refusal, WhoIsThere};
use support::Server;

fn message(len: usize) -> Message {
    Message::with_body(&About::nothing(), &WhoIsThere { reply: String::new() }, vec![0; len].into())
}

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn tls_server() -> Server {
    let (cert, key) = (fixtures("server.pem"), fixtures("server.key"));
    let arguments =
        ["-js", "--tls", "--tlscert", &cert.to_string_lossy(), "--tlskey", &key.to_string_lossy()];
    Server::start_with(&arguments)
}

#[tokio::test]
async fn user_and_password_come_from_the_address() {
    let server = Server::start_with(&["-js", "--user", "lvkeep", "--pass", "p@ss:word"]);
    let url = |password: &str| format!("nats://lvkeep:{password}@127.0.0.1:{}", server.port());
    let bus = NatsBus::connect(Settings::new(url("p%40ss%3Aword"), "ns")).await.unwrap();
    bus.publish(&Queue::jobs(), message(10)).await.unwrap();

    let why = NatsBus::connect(Settings::new(url("wrong-secret"), "ns")).await.unwrap_err();
    assert!(matches!(why, StartError::Unreachable { .. }), "{why:?}");
    assert!(!why.to_string().contains("wrong-secret"), "{why}");
    assert!(why.to_string().contains("authorization violation"), "{why}");
}

#[tokio::test]
async fn server_without_jetstream_is_refused_by_name() {
    let server = Server::start_with(&[]);
    let why = NatsBus::connect(Settings::new(server.url(), "ns")).await.unwrap_err();
    assert!(matches!(why, StartError::NoJetStream { .. }), "{why:?}");
}

#[tokio::test]
async fn server_for_small_messages_is_refused_by_name() {
    let config = tempfile::tempdir().unwrap();
    let path = config.path().join("nats.conf");
    std::fs::write(&path, "max_payload: 65536\n").unwrap();
    let server = Server::start_with(&["-js", "-c", &path.to_string_lossy()]);
    let why = NatsBus::connect(Settings::new(server.url(), "ns")).await.unwrap_err();
    assert!(matches!(why, StartError::Payload { found: 65536, .. }), "{why:?}");
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let mut server = Server::start();
    server.kill();
    let why = NatsBus::connect(Settings::new(server.url(), "ns")).await.unwrap_err();
    assert!(matches!(why, StartError::Unreachable { .. }), "{why:?}");
}

#[tokio::test]
async fn missing_files_are_named() {
    let server = Server::start();
    let mut settings = Settings::new(server.url(), "ns");
    settings.credentials_file = Some("/nonexistent/user.creds".into());
    let why = NatsBus::connect(settings).await.unwrap_err();
    assert!(why.to_string().contains("/nonexistent/user.creds"), "{why}");
}

#[tokio::test]
async fn tls_is_used_where_the_address_says_so() {
    let server = tls_server();
    let mut settings = Settings::new(format!("tls://localhost:{}", server.port()), "ns");
    settings.ca_file = Some(fixtures("ca.pem"));
    let bus = NatsBus::connect(settings).await.unwrap();
    bus.publish(&Queue::jobs(), message(MESSAGE_MAX - 100)).await.unwrap();
}

#[tokio::test]
async fn unknown_certificate_is_refused() {
    let server = tls_server();
    let settings = Settings::new(format!("tls://localhost:{}", server.port()), "ns");
    let why = NatsBus::connect(settings).await.unwrap_err();
    assert!(matches!(why, StartError::Unreachable { .. }), "{why:?}");
}

#[tokio::test]
async fn server_without_tls_is_refused_where_a_certificate_is_given() {
    let server = Server::start();
    let mut settings = Settings::new(server.url(), "ns");
    settings.ca_file = Some(fixtures("ca.pem"));
    let why = NatsBus::connect(settings).await.unwrap_err();
    assert!(matches!(why, StartError::Unreachable { .. }), "{why:?}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_for_good_and_by_name() {
    let server = Server::start();
    let bus = support::connect(&server).await;
    let queue = Queue::extents("pool");
    let why = bus.publish(&queue, message(MESSAGE_MAX)).await.unwrap_err();
    assert!(matches!(&why, BusError::Unsendable { subject, .. } if *subject == queue.to_string()), "{why:?}");
    assert!(!why.is_transient());

    let service = Service::index(1);
    let why = bus.request(&service, message(MESSAGE_MAX), Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(&why, BusError::Unsendable { subject, .. } if subject == service.name()), "{why:?}");

    // An answer that is too large is a refusal to whoever asked, and an error to whoever answered.
    let mut requests = bus.serve(&service).await.unwrap();
    let server_side = tokio::spawn(async move {
        let request = requests.next().await.unwrap();
        request.reply.send(message(MESSAGE_MAX)).await
    });
    let why = bus.request(&service, message(1), Duration::from_secs(30)).await.unwrap_err();
    assert!(matches!(&why, BusError::Refused { .. }), "{why:?}");
    assert!(matches!(server_side.await.unwrap(), Err(BusError::Unsendable { .. })));

    let refusal = Message::new(&About::nothing(), &Refusal { why: "no".into() });
    bus.publish(&queue, refusal).await.unwrap();
}

#[tokio::test]
async fn windows_are_checked() {
    let server = Server::start();
    let bus = NatsBus::connect(Settings::new(server.url(), "ns")).await.unwrap();
    assert!(bus.check_windows(32 << 20).is_ok());
    assert!(matches!(bus.check_windows(1 << 30), Err(StartError::Window { .. })));
}
