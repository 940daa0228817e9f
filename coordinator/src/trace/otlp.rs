//! Sends kept steps to a receiver of the OpenTelemetry protocol, such as Jaeger or Grafana. Each step is one trace with the spans
//! of all processes. A separate thread sends. If the receiver is slow or unreachable, spans are dropped, and the job is not delayed.
//!
//! Layers are only in `trace.json`. The receiver gets steps, segments, transfers, commits, measurements and checkpoints. Workers send
//! nothing themselves: the coordinator has their spans, on its own clock.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use convoy_common::chain::chain;
use convoy_common::model::Network;
use convoy_common::trace::{Activity, Span};
use convoy_common::wire::description_from;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as wire;
use tonic::transport::{Channel, Endpoint};

use super::file::{About, Part, StepTrace, described, step_span};

/// Steps that may be queued for the receiver.
const QUEUED: usize = 16;
/// A receiver must answer within this.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long queued steps have at the end of a job.
const FAREWELL_MAX: Duration = ANSWER_MAX;

/// The thread that sends.
#[derive(Debug)]
pub struct Exporter {
    endpoint: String,
    queue: SyncSender<ExportTraceServiceRequest>,
    ended: Receiver<Trouble>,
    /// Steps that were dropped because the queue was full.
    dropped: usize,
}

/// Number of steps that couldn't be sent, and why the first couldn't.
#[derive(Debug, Default)]
struct Trouble {
    failed: usize,
    why: Option<String>,
}

impl Exporter {
    /// Starts the thread for `endpoint`, such as `http://localhost:4317`. It doesn't check that a receiver is there.
    ///
    /// # Errors
    /// When the endpoint isn't an address, or the system provides no thread.
    pub fn start(endpoint: &str) -> Result<Self, String> {
        let address = read_endpoint(endpoint)?;
        let wrong = |why: String| unusable(endpoint, &why);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| wrong(error.to_string()))?;
        let ((queue, requests), (end, ended)) = (sync_channel(QUEUED), sync_channel(1));
        let spawned = thread::Builder::new().name("otlp".to_owned()).spawn(move || {
            let _entered = runtime.enter();
            let client = TraceServiceClient::new(address.connect_lazy());
            let trouble = runtime.block_on(send_all(client, requests));
            // The job may have stopped waiting.
            let _ = end.send(trouble);
        });
        spawned.map_err(|error| wrong(error.to_string()))?;
        Ok(Self { endpoint: endpoint.to_owned(), queue, ended, dropped: 0 })
    }

    /// Queues a step, or counts it as dropped if the queue is full.
    pub(super) fn export(&mut self, request: ExportTraceServiceRequest) {
        self.dropped += usize::from(self.queue.try_send(request).is_err());
    }

    /// Ends the thread. Returns a notice for people if steps were lost.
    pub(super) fn finish(self) -> Option<String> {
        let Self { endpoint, queue, ended, dropped } = self;
        drop(queue);
        match ended.recv_timeout(FAREWELL_MAX) {
            Ok(Trouble { failed: 0, .. }) if dropped == 0 => None,
            Ok(Trouble { failed, why }) => {
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                Some(format!("failed to send {} traced steps to {endpoint}{why}", failed + dropped))
            }
            Err(_) => Some(format!(
                "some traced steps were not sent to {endpoint}, because it did not answer within {FAREWELL_MAX:?}"
            )),
        }
    }
}

async fn send_all(mut client: TraceServiceClient<Channel>, requests: Receiver<ExportTraceServiceRequest>) -> Trouble {
    let mut trouble = Trouble::default();
    // This thread does nothing else, so it may block on its queue.
    while let Ok(request) = requests.recv() {
        let sent = tokio::time::timeout(ANSWER_MAX, client.export(request)).await;
        let failed = match sent {
            Ok(Ok(_)) => continue,
            Ok(Err(status)) => description_from(status.message()),
            Err(_) => format!("no answer within {ANSWER_MAX:?}"),
        };
        trouble.failed += 1;
        trouble.why.get_or_insert(failed);
    }
    trouble
}

/// A step as a trace. Span 1 is the step. From 2 on come the workers' parts of it, and then everything within them.
pub(super) fn request(step: u64, trace: &StepTrace, about: &About, network: &Network) -> ExportTraceServiceRequest {
    let mut spans = Numbered { step, about, network, next: 2 + trace.workers.len() as u64 };
    // Work beside the steps, such as the last checkpoint, has no step span.
    let (own, name) = match step_span(&trace.coordinator) {
        Some(own) => (Some(own.clone()), format!("step {step}")),
        None => (around(&trace.coordinator), format!("before step {step}")),
    };
    let root = own.map(|own| wire::Span { name, ..spans.span(1, None, &own) });
    let mut coordinator: Vec<_> = root.into_iter().collect();
    coordinator.extend(spans.within(1, &trace.coordinator));
    let mut resources = vec![resource("coordinator", "convoy-coordinator", coordinator)];
    for (worker, part) in trace.workers.iter().enumerate() {
        let number = 2 + worker as u64;
        let whole = around(part).map(|whole| wire::Span {
            name: format!("worker {worker}: step {step}"),
            ..spans.span(number, Some(1), &whole)
        });
        let mut own: Vec<_> = whole.into_iter().collect();
        own.extend(spans.within(number, part));
        resources.push(resource(&format!("worker {worker}"), "convoy-worker", own));
    }
    ExportTraceServiceRequest { resource_spans: resources }
}

/// Parses an endpoint.
///
/// # Errors
/// Says what is wrong, and what would be right.
pub fn read_endpoint(endpoint: &str) -> Result<Endpoint, String> {
    if !endpoint.starts_with("http://") {
        let why = "must be http://HOST:PORT of a receiver that accepts unencrypted gRPC";
        return Err(unusable(endpoint, why));
    }
    Endpoint::from_shared(endpoint.to_owned()).map_err(|error| unusable(endpoint, &chain(&error)))
}

fn unusable(endpoint: &str, why: &str) -> String {
    format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}: {why}")
}

/// From the first recorded time of a part to the last.
fn around(part: &Part) -> Option<Span> {
    let start = part.spans.iter().map(|span| span.start).min()?;
    let end = part.spans.iter().map(|span| span.end).max()?;
    Some(Span { start, end, activity: Activity::Idle })
}

struct Numbered<'a> {
    step: u64,
    about: &'a About,
    network: &'a Network,
    next: u64,
}

impl Numbered<'_> {
    fn within(&mut self, parent: u64, part: &Part) -> Vec<wire::Span> {
        let coarse = part.spans.iter().filter(|span| is_coarse(&span.activity));
        let each = coarse.map(|span| {
            let number = self.next;
            self.next += 1;
            wire::Span {
                name: described(self.network, &span.activity).1.into_owned(),
                ..self.span(number, Some(parent), span)
            }
        });
        each.collect()
    }

    fn span(&self, number: u64, parent: Option<u64>, span: &Span) -> wire::Span {
        let unix = |at: u64| self.about.epoch_unix_ns.saturating_add(at);
        let bytes = |number: u64| number.to_be_bytes().to_vec();
        wire::Span {
            // The time of its start identifies a run.
            trace_id: [self.about.epoch_unix_ns.to_be_bytes(), self.step.to_be_bytes()].concat(),
            span_id: bytes(number),
            parent_span_id: parent.map(bytes).unwrap_or_default(),
            kind: wire::span::SpanKind::Internal.into(),
            start_time_unix_nano: unix(span.start),
            end_time_unix_nano: unix(span.end),
            ..wire::Span::default()
        }
    }
}

fn is_coarse(activity: &Activity) -> bool {
    match activity {
        Activity::Layer { .. }
        | Activity::Take(_)
        | Activity::HandOut
        | Activity::AwaitTensor(_)
        | Activity::AwaitOrder
        | Activity::Step { .. }
        | Activity::Idle => false,
        Activity::Segment(_)
        | Activity::Commit { .. }
        | Activity::ReadState
        | Activity::Send(_)
        | Activity::Receive(_)
        | Activity::Relay(_)
        | Activity::AwaitImages(_)
        | Activity::SendImages(_)
        | Activity::Loss(_)
        | Activity::Measure
        | Activity::Checkpoint => true,
    }
}

fn resource(instance: &str, service: &str, spans: Vec<wire::Span>) -> wire::ResourceSpans {
    let text = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) }),
        ..KeyValue::default()
    };
    let attributes = vec![text("service.name", service), text("service.instance.id", instance)];
    let scope = InstrumentationScope { name: "convoy".to_owned(), ..InstrumentationScope::default() };
    wire::ResourceSpans {
        resource: Some(Resource { attributes, ..Resource::default() }),
        scope_spans: vec![wire::ScopeSpans { scope: Some(scope), spans, ..wire::ScopeSpans::default() }],
        ..wire::ResourceSpans::default()
    }
}
