//! A tap on the connections to a server: all passes as it is, and what clients say is counted.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Listens on a loopback port until the process ends.
#[derive(Debug)]
pub struct Tap {
    port: u16,
    said: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    /// In front of the server at an address such as `http://127.0.0.1:8333`.
    pub fn on(endpoint: &str) -> Self {
        let server = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let port = listener.local_addr().expect("its address").port();
        let said: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let all = said.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let number = {
                    let mut all = locked(&all);
                    all.push(Vec::new());
                    all.len() - 1
                };
                let (from, to) =
                    (client.try_clone().expect("a handle"), server.try_clone().expect("a handle"));
                let heard = all.clone();
                thread::spawn(move || {
                    pass(from, to, |bytes| locked(&heard)[number].extend_from_slice(bytes))
                });
                thread::spawn(move || pass(server, client, |_| ()));
            }
        });
        Self { port, said }
    }

    /// Where clients find it.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How often clients have said this.
    pub fn heard(&self, words: &str) -> usize {
        let words = words.as_bytes();
        let in_one = |said: &Vec<u8>| said.windows(words.len()).filter(|window| *window == words).count();
        locked(&self.said).iter().map(in_one).sum()
    }
}

fn locked(said: &Mutex<Vec<Vec<u8>>>) -> MutexGuard<'_, Vec<Vec<u8>>> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes on what comes until one side has closed.
fn pass(mut from: TcpStream, mut to: TcpStream, mut hear: impl FnMut(&[u8])) {
    let mut bytes = [0; 1 << 14];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        hear(&bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
