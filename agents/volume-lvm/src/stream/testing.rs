//! What the tests here are made of: a clock that never waits, volumes in files, streams in memory, and connections
//! that break where they are told to.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use agent::rate::RateLimit;
use agent::{Environment, Failure, Stop};
use async_trait::async_trait;
use schema::stream::{Applied, Format};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, duplex, sink};
use tokio::task::JoinHandle;

use super::apply::{Apply, Keep};
use super::link::{Connector, Link};
use super::send::{Sending, Sent};
use super::source::Source;
use super::target::Target;
use crate::ranges::Ranges;

/// Time passes when somebody waits, and random bytes count up.
#[derive(Debug, Default)]
pub struct Idle {
    slept: AtomicU64,
    drawn: AtomicU64,
}

#[async_trait]
impl Environment for Idle {
    fn now_ms(&self) -> u64 {
        self.slept.load(Ordering::Relaxed)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.slept.load(Ordering::Relaxed))
    }

    async fn sleep(&self, duration: Duration) {
        self.slept.fetch_add(duration.as_millis() as u64, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        let drawn = 1 + self.drawn.fetch_add(1, Ordering::Relaxed);
        bytes.iter_mut().zip(drawn.to_le_bytes().iter().cycle()).for_each(|(byte, from)| *byte = *from);
    }
}

/// A folder with volumes in files.
#[derive(Debug)]
pub struct Volumes {
    folder: tempfile::TempDir,
    pub environment: Arc<Idle>,
}

impl Volumes {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), environment: Arc::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub fn source(&self, name: &str) -> Arc<Source> {
        Arc::new(Source::open(name, &self.path(name)).unwrap())
    }

    pub fn target(&self, name: &str) -> Arc<Target> {
        Arc::new(Target::open(name, &self.path(name), None).unwrap())
    }

    /// Everything that differs between two volumes, and a few ranges that do not.
    pub fn sending(&self, old: &str, new: &str) -> Sending {
        let (old, bytes) = (self.read(old), self.read(new));
        let differs =
            |at: &usize| old.get(*at..at + 4096) != bytes.get(*at..at + 4096) || at.is_multiple_of(13);
        let starts = (0..bytes.len()).step_by(4096).filter(differs);
        let ranges: Ranges = starts.map(|at| at as u64..at as u64 + 4096).collect();
        self.sending_of(new, ranges)
    }

    pub fn sending_of(&self, source: &str, ranges: Ranges) -> Sending {
        let (stop, environment) = (Stop::default(), self.environment.clone());
        Sending::new(self.source(source), ranges, "vg/web", RateLimit::none(), stop, environment)
    }

    pub async fn stream(&self, sending: &Sending, format: Format) -> (Vec<u8>, Sent) {
        let mut out = Vec::new();
        let sent = sending.write_to(format, &mut out, |_| {}).await.unwrap();
        (out, sent)
    }

    pub fn apply(&self) -> Apply {
        Apply::new(Stop::default(), self.environment.clone())
    }

    pub fn keeping(&self, name: &str, format: Format) -> Apply {
        Apply { keep: Some(Keep { path: self.path(name), format }), ..self.apply() }
    }

    pub async fn run(&self, apply: &Apply, stream: &[u8], target: &str) -> Result<Applied, Failure> {
        apply.run(stream, sink(), self.target(target), |_| {}).await
    }
}

/// `len` bytes: mostly noise by a seed, with empty stretches.
pub fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let block = if state >> 61 == 0 { [0; 4096] } else { [(state >> 40) as u8; 4096] };
        out.extend_from_slice(&block[..block.len().min(len - out.len())]);
    }
    out
}

/// The same volume a while later.
pub fn changed(bytes: &[u8], seed: u64) -> Vec<u8> {
    let (mut out, noise) = (bytes.to_vec(), content(bytes.len(), seed + 1000));
    let mut state = seed | 1;
    for _ in 0..12 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let blocks = out.len() / 4096;
        let (at, len) = ((state >> 33) as usize % blocks, 1 + (state >> 20) as usize % 40);
        let range = at * 4096..(at + len).min(blocks) * 4096;
        match state >> 62 {
            0 => out[range].fill(0),
            _ => out[range.clone()].copy_from_slice(&noise[range]),
        }
    }
    out
}

/// Connections to an `apply` of this process, each of which opens the target anew, as a process elsewhere would. A
/// connection passes on as many bytes as it is told to, in either direction, and then breaks.
#[derive(Debug)]
pub struct Breaking {
    pub apply: Apply,
    pub path: PathBuf,
    /// For each connection: bytes that go there, and bytes that come back. The last holds for all others.
    pub breaks: Vec<(usize, usize)>,
    pub connections: Mutex<Vec<bool>>,
    running: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Breaking {
    pub fn new(apply: Apply, path: &Path, breaks: &[(usize, usize)]) -> Self {
        Self {
            apply,
            path: path.to_owned(),
            breaks: breaks.to_vec(),
            connections: Mutex::default(),
            running: tokio::sync::Mutex::default(),
        }
    }

    /// Waits until the last `apply` is over.
    pub async fn over(&self) {
        if let Some(running) = self.running.lock().await.take() {
            running.await.unwrap();
        }
    }
}

#[async_trait]
impl Connector for Breaking {
    fn name(&self) -> String {
        "elsewhere".to_owned()
    }

    fn comes_back(&self) -> bool {
        true
    }

    async fn connect(&self, reconnecting: bool) -> Result<Link, Failure> {
        self.over().await;
        let number = {
            let mut connections = self.connections.lock().unwrap();
            connections.push(reconnecting);
            connections.len() - 1
        };
        let (there, back) = *self.breaks.get(number).or(self.breaks.last()).unwrap();
        let ((input, stream), (answers, output)) = (duplex(64 << 10), duplex(64 << 10));
        let apply = Apply { answers: true, reconnected: reconnecting, ..self.apply.clone() };
        let target = Arc::new(Target::open("elsewhere", &self.path, None)?);
        *self.running.lock().await = Some(tokio::spawn(async move {
            let _ = apply.run(stream, answers, target, |_| {}).await;
        }));
        let (input, output) = (Some(input), Some(output));
        Ok(Link {
            input: Box::pin(Limited { inner: input, left: there }),
            output: Box::pin(Limited { inner: output, left: back }),
            process: None,
        })
    }
}

/// Passes on so many bytes and no more.
struct Limited<T> {
    inner: Option<T>,
    left: usize,
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Limited<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let take = bytes.len().min(self.left);
        let Some(inner) = self.inner.as_mut().filter(|_| take > 0) else {
            self.inner = None; // the other side sees the end
            return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        };
        let written = Pin::new(inner).poll_write(cx, &bytes[..take]);
        if let Poll::Ready(Ok(written)) = &written {
            self.left -= written;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.inner.as_mut().map_or(Poll::Ready(Ok(())), |inner| Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.inner.as_mut().map_or(Poll::Ready(Ok(())), |inner| Pin::new(inner).poll_shutdown(cx))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Limited<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let left = self.left;
        let Some(inner) = self.inner.as_mut().filter(|_| left > 0) else { return Poll::Ready(Ok(())) };
        let mut part = vec![0; buf.remaining().min(left)];
        let mut part = ReadBuf::new(&mut part);
        let read = Pin::new(inner).poll_read(cx, &mut part);
        if let Poll::Ready(Ok(())) = &read {
            buf.put_slice(part.filled());
            self.left -= part.filled().len();
        }
        read
    }
}
