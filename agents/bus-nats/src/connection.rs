//! One connection: how it is made, when it was lost, and what is remembered about the server behind it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use agent::Queue;
use agent::bus::BusError;
use async_nats::connection::State;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use schema::limits::MESSAGE_MAX;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::deliveries::Intake;
use crate::family::Family;
use crate::settings::{Settings, StartError};

/// Room for what NATS adds to a message: subject and reply subject.
pub(crate) const OVERHEAD: usize = 4 << 10;
/// Messages that wait in one subscription before new ones are dropped; more than one pull asks for.
const SUBSCRIPTION_CAPACITY: usize = 1024;
/// Commands that wait to be sent, of up to 1 MB each.
const SENDER_CAPACITY: usize = 64;
/// Wait for the acknowledgement of a publish, and for other answers of JetStream.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);
/// Longest pause between two tries to connect.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Pause between two looks at the state of the connection.
const STATE_PAUSE: Duration = Duration::from_millis(50);
/// How often a connection without traffic is probed.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Locks; every critical section here leaves the state whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands in the way of something, and what helps.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The queue is full: waiting helps, however long it takes.
    Full,
    /// The server knows no such stream or consumer: making it helps.
    Missing,
    /// The server is away, does not answer or cannot: waiting may help.
    Away(String),
    /// Nothing helps.
    Never(String),
}

/// The connection, and what is known of the streams behind it.
#[derive(Debug)]
pub(crate) struct Nats {
    pub settings: Settings,
    pub client: Client,
    pub context: Context,
    /// Counts connections; changes wake whoever waits for a connection or for an answer that will not come.
    connected: watch::Receiver<u64>,
    families: Mutex<BTreeMap<&'static str, Arc<Family>>>,
    /// One publisher at a time tries a queue that is full; its entry goes with the last of them.
    pub gates: Mutex<BTreeMap<Queue, Weak<tokio::sync::Mutex<()>>>>,
    pub intakes: Mutex<Vec<Weak<Intake>>>,
}

impl Nats {
    pub async fn connect(settings: Settings) -> Result<Arc<Self>, StartError> {
        settings.check()?;
        let servers = addresses(&settings.url)?;
        let server = servers.iter().map(shown).collect::<Vec<_>>().join(",");
        let (announce, connected) = watch::channel(0);
        let options = options(&settings, &servers, announce).await?;
        let unreachable = |why: String| StartError::Unreachable { server: server.clone(), why };
        let client = options.connect(&servers[..]).await.map_err(|why| unreachable(chain(&why)))?;
        let (found, needed) = (client.max_payload(), MESSAGE_MAX + OVERHEAD);
        if found < needed {
            return Err(StartError::Payload { server, found, needed });
        }
        let context = ContextBuilder::new().timeout(ANSWER_PATIENCE).build(client.clone());
        if let Err(why) = context.query_account().await {
            return Err(match why.kind() {
                jetstream::context::AccountErrorKind::TimedOut => unreachable(chain(&why)),
                _ => StartError::NoJetStream { server, why: chain(&why) },
            });
        }
        Ok(Arc::new(Self {
            settings,
            client,
            context,
            connected,
            families: Mutex::default(),
            gates: Mutex::default(),
            intakes: Mutex::default(),
        }))
    }

    /// How often a connection was made. What one connection promised, the next may not know.
    pub fn era(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Waits until this is no longer the connection.
    pub async fn era_is_over(&self, era: u64) {
        let mut connected = self.connected.clone();
        while self.era() == era {
            if connected.changed().await.is_err() {
                // The client ended: no other connection will come.
                return std::future::pending().await;
            }
        }
    }

    /// Waits, at most this long, until there is a connection.
    pub async fn wait_connected(&self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        let mut connected = self.connected.clone();
        while self.client.connection_state() != State::Connected {
            if Instant::now() >= deadline {
                return Err("not connected".into());
            }
            // The announcement may come before the state shows it, or get lost: look again soon.
            tokio::select! {
                Ok(()) = connected.changed() => {}
                () = tokio::time::sleep(STATE_PAUSE) => {}
            }
        }
        Ok(())
    }

    /// [`Self::wait_connected`] for callers that then give up.
    pub async fn need_connection(&self, patience: Duration) -> Result<(), BusError> {
        self.wait_connected(patience).await.map_err(BusError::Unreachable)
    }

    pub fn family(&self, queue: &Queue) -> Arc<Family> {
        let mut families = lock(&self.families);
        let made =
            families.entry(queue.family()).or_insert_with(|| Arc::new(Family::new(&self.settings, queue)));
        made.clone()
    }

    pub fn subject(&self, queue: &Queue) -> String {
        format!("{}.q.{}.{}", self.settings.namespace, queue.family(), queue.member())
    }
}

fn setting(setting: &'static str, why: impl ToString) -> StartError {
    StartError::Setting { setting, why: why.to_string() }
}

fn addresses(url: &str) -> Result<Vec<ServerAddr>, StartError> {
    let parse = |one: &str| {
        let address: ServerAddr = one.trim().parse().map_err(|why| setting("url", why))?;
        match address.scheme() {
            _ if address.host().is_empty() => Err(setting("url", "an address without a host")),
            "nats" | "tls" => Ok(address),
            other => Err(setting("url", format!("{other}:// is neither nats:// nor tls://"))),
        }
    };
    url.split(',').map(parse).collect()
}

/// An address without its password.
fn shown(address: &ServerAddr) -> String {
    format!("{}://{}:{}", address.scheme(), address.host(), address.port())
}

async fn options(
    settings: &Settings,
    servers: &[ServerAddr],
    announce: watch::Sender<u64>,
) -> Result<ConnectOptions, StartError> {
    let mut options = ConnectOptions::new()
        .name(&settings.name)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .client_capacity(SENDER_CAPACITY)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(ANSWER_PATIENCE))
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| {
            let exponent = u32::try_from(attempts.min(5)).unwrap_or(5);
            (Duration::from_millis(50) * 2u32.pow(exponent)).min(RECONNECT_PAUSE_MAX)
        })
        .event_callback(move |event| {
            if event == Event::Connected {
                announce.send_modify(|count| *count += 1);
            }
            tell(&event);
            std::future::ready(())
        });
    // The client library itself overlooks what an address says about the user.
    if let Some(with_user) = servers.iter().find(|server| server.has_user_pass()) {
        let part =
            |text: &str| unescape(text).ok_or_else(|| setting("url", "bad % escape in the user or password"));
        let user = part(with_user.username().unwrap_or_default())?;
        options = options.user_and_password(user, part(with_user.password().unwrap_or_default())?);
    }
    if let Some(path) = &settings.credentials_file {
        let named = |why| setting("credentials_file", format!("{}: {why}", path.display()));
        options = options.credentials_file(path).await.map_err(named)?;
    }
    if let Some(path) = &settings.ca_file {
        options = options.add_root_certificates(path.clone());
    }
    let tls = settings.ca_file.is_some() || servers.iter().any(ServerAddr::tls_required);
    // A binary may hold several implementations of the cryptography of TLS; then one must be chosen, or TLS panics.
    // That another choice was made already is fine.
    let _ = async_nats::rustls::crypto::aws_lc_rs::default_provider().install_default();
    Ok(options.require_tls(tls))
}

fn tell(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to the message bus"),
        Event::Disconnected => tracing::warn!("lost the connection to the message bus; connecting again"),
        Event::SlowConsumer(_) => {
            tracing::warn!("messages came faster than they were taken; some were dropped")
        }
        other => tracing::debug!(event = %other, "message bus"),
    }
}

/// Percent escapes of a URL.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (digit(bytes.next()?)? * 16 + digit(bytes.next()?)?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_shown_without_passwords() {
        let found = addresses("nats://me:se%40cret@one, tls://two:5222,three:1").unwrap();
        let shown: Vec<String> = found.iter().map(shown).collect();
        assert_eq!(shown, ["nats://one:4222", "tls://two:5222", "nats://three:1"]);
        assert_eq!(found[0].password().and_then(unescape).as_deref(), Some("se@cret"));
        assert!(addresses("http://one").is_err());
        assert!(addresses("").is_err());
    }

    #[test]
    fn broken_escapes_are_refused() {
        for text in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(unescape(text), None, "{text}");
        }
    }
}
