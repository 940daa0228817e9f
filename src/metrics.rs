//! `--metrics`: serves metrics to Prometheus over HTTP, in the OpenMetrics format. Connections are few and short, so readers
//! can't slow a job down.
//!
//! Not here: what is counted (the coordinator and the worker).

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_net::listening::Listening;
use convoy_net::reception::{Limits, Reception};
use convoy_net::tls::{Protocol, Tls};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use memory_stats::memory_stats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio_stream::StreamExt;

use crate::settings::Misuse;

const PATH: &str = "/metrics";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// A connection that lasts for longer is closed. If there are more, the oldest one makes room.
const LIMITS: Limits = Limits {
    strangers: 64,
    grace: Duration::from_millis(25),
    crowd: 128,
    patience: Duration::from_secs(2),
    visitors: 0,
};

/// Registers counters with `register`, and serves them at `address` if there is one: over HTTPS if there is an identity.
pub(crate) fn counted<M>(
    address: Option<&Address>,
    tls: Option<&Tls>,
    register: impl FnOnce(&mut Registry) -> M,
) -> Result<M, Box<dyn Error>> {
    let mut registry = Registry::default();
    registry.register("convoy_build", "Version of the program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    registry.register_collector(Box::new(Memory));
    let metrics = register(&mut registry);
    if let Some(address) = address {
        serve(address, tls.cloned(), registry)?;
    }
    Ok(metrics)
}

/// Memory of this process, under the name that Prometheus' own clients use. It is read when metrics are.
#[derive(Debug)]
struct Memory;

impl Collector for Memory {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(memory) = memory_stats() else { return Ok(()) };
        let gauge = ConstGauge::new(memory.physical_mem as i64);
        let help = "Resident memory of the process";
        let metric = encoder.encode_descriptor("process_resident_memory_bytes", help, None, gauge.metric_type())?;
        gauge.encode(metric)
    }
}

fn serve(address: &Address, tls: Option<Tls>, registry: Registry) -> Result<(), Box<dyn Error>> {
    let Address::Tcp(host) = address else {
        return Err(Misuse(format!("--metrics {address}: must be HOST:PORT")).into());
    };
    let wrong = |error: std::io::Error| format!("cannot serve metrics at {host} (--metrics): {error}");
    let listener = TcpListener::bind(host.as_str()).map_err(wrong)?;
    listener.set_nonblocking(true).map_err(wrong)?;
    let bound = listener.local_addr().map_err(wrong)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(wrong)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let answering = move || {
        // This thread does nothing else, so it ends with its listener.
        if let Err(error) = runtime.block_on(answer_all(listener, tls.as_ref(), Arc::new(registry))) {
            tracing::warn!("metrics are not served: {error}");
        }
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(answering).map_err(wrong)?;
    tracing::info!("metrics at {scheme}://{bound}{PATH}");
    Ok(())
}

async fn answer_all(listener: TcpListener, tls: Option<&Tls>, registry: Arc<Registry>) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let address = listener.local_addr()?.to_string();
    let listening = Listening::Tcp(listener, address);
    let mut arrivals = listening.arrivals(Reception::new("for metrics", LIMITS), Protocol::Http, tls);
    while let Some((socket, mut stay)) = arrivals.next().await {
        let registry = registry.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let registry = registry.clone();
                async move { Ok::<_, Infallible>(answer(&request, &registry)) }
            });
            let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(socket), service);
            // A reader that missed the answer asks again.
            tokio::select! {
                _ = connection => {}
                () = stay.ended() => {}
            }
        });
    }
    Ok(())
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        let mut response = told(StatusCode::METHOD_NOT_ALLOWED, "only GET is supported\n".to_owned());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        return response;
    }
    if request.uri().path() != PATH {
        return told(StatusCode::NOT_FOUND, format!("metrics are at {PATH}\n"));
    }
    let mut encoded = String::new();
    if text::encode(&mut encoded, registry).is_err() {
        return told(StatusCode::INTERNAL_SERVER_ERROR, "failed to encode the metrics\n".to_owned());
    }
    let mut response = told(StatusCode::OK, encoded);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(OPEN_METRICS));
    response
}

fn told(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each limit stands in docs/SECURITY.md.
    #[test]
    fn the_docs_say_every_limit() {
        let docs = include_str!("../docs/SECURITY.md");
        for (what, value) in [
            (
                "connections at the address for metrics; the oldest makes room for the next one",
                LIMITS.strangers.to_string(),
            ),
            ("after this time, a connection for metrics is closed", format!("{} s", LIMITS.patience.as_secs())),
        ] {
            assert!(docs.contains(&format!("| {what} | {value} |\n")), "docs/SECURITY.md lacks: | {what} | {value} |");
        }
    }
}
