//! The listener for `/metrics`. It has its own address, so that machines need not be able to reach it.

use std::sync::Arc;

use axum::{Router, routing::get};
use http::header::CONTENT_TYPE;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    connections::{self, ConnectionLimits, Server},
    telemetry::Metrics,
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `/metrics` until `shutdown`. `sample` runs before each response. It sets the gauges that are read rather than
/// counted, such as the pool's.
pub(super) async fn serve_metrics<F>(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    sample: F,
    shutdown: CancellationToken,
) where
    F: Fn(&Metrics) + Send + Sync + 'static,
{
    let sample = Arc::new(sample);
    let shown = Arc::clone(&metrics);
    let router = Router::new().route(
        "/metrics",
        get(move || {
            sample(&shown);
            let encoded = shown.encode();
            async move { ([(CONTENT_TYPE, OPEN_METRICS)], encoded) }
        }),
    );
    let server = Server {
        router,
        tls: None,
        limits: ConnectionLimits {
            max_connections: 64,
            ..ConnectionLimits::default()
        },
        // Connections of scrapers are not counted among those of machines.
        metrics: Arc::new(Metrics::new()),
    };
    connections::serve(listener, server, shutdown).await;
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn a_scrape_gets_the_sampled_values() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (metrics, shutdown) = (Arc::new(Metrics::new()), CancellationToken::new());
        let serving = tokio::spawn(serve_metrics(
            listener,
            metrics,
            |metrics| {
                metrics.pool.size.set(9);
            },
            shutdown.clone(),
        ));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains("content-type: application/openmetrics-text"),
            "{answer}"
        );
        assert!(answer.contains("assay_database_connections 9\n"), "{answer}");
        shutdown.cancel();
        serving.await.unwrap();
    }
}
