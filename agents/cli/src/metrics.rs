//! A Prometheus endpoint: `GET /metrics`, text format, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use agent::counters::Counters;
use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of a request that are read before it is given up.
const REQUEST_MAX: usize = 8 << 10;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the counters until the task is dropped. Says the address, which matters when the port was 0.
pub async fn serve(address: &str, counters: Arc<Counters>) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("metrics endpoint on {address}"))?;
    tracing::info!(address = %listener.local_addr()?, "metrics");
    tokio::spawn(async move {
        loop {
            // One at a time is plenty, and bounds what strangers can make this process hold.
            if let Ok((stream, _)) = listener.accept().await {
                let _ = tokio::time::timeout(PATIENCE, answer(stream, &counters)).await;
            }
        }
    });
    Ok(())
}

async fn answer(mut stream: TcpStream, counters: &Counters) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut buffer).await?;
        if n == 0 || request.len() + n > REQUEST_MAX {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..n]);
    }
    let (status, body) = match request.starts_with(b"GET /metrics ") {
        true => ("200 OK", render(counters)),
        false => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn render(counters: &Counters) -> String {
    let mut out = String::new();
    for (name, help, value) in counters.list() {
        out.push_str(&format!("# HELP lvkeep_{name}_total {help}\n# TYPE lvkeep_{name}_total counter\nlvkeep_{name}_total {value}\n"));
    }
    for (name, help, value) in counters.gauges() {
        out.push_str(&format!(
            "# HELP lvkeep_{name} {help}\n# TYPE lvkeep_{name} gauge\nlvkeep_{name} {value}\n"
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rises_and_falls_is_no_counter() {
        let counters = Counters::default();
        counters.collections.add(2);
        counters.collection_waits_seconds.set(7);
        let text = render(&counters);
        for line in [
            "# TYPE lvkeep_collections_total counter",
            "lvkeep_collections_total 2",
            "# TYPE lvkeep_collection_waits_seconds gauge",
            "lvkeep_collection_waits_seconds 7",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
    }
}
