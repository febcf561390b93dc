//! Counters of the server, in the text format of Prometheus.
//!
//! A metric that vLLM also has gets vLLM's name, so that Kubernetes' inference gateway and existing
//! dashboards can read the metric without configuration.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Maximum number of adapters with separate counters. All further adapters are counted together as `other`.
const MAX_ADAPTERS: usize = 100;

/// Label for all adapters without separate counters.
const OTHER: &str = "other";

/// Upper bounds of the buckets in seconds.
const SECONDS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0];

/// A histogram of durations.
#[derive(Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; SECONDS.len()],
    count: AtomicU64,
    sum_micros: AtomicU64,
}

impl Histogram {
    pub fn add(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(i) = SECONDS.iter().position(|&bound| seconds <= bound) {
            self.buckets[i].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut total = 0;
        let _ = writeln!(out, "# TYPE {name} histogram");
        for (bucket, bound) in self.buckets.iter().zip(SECONDS) {
            total += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let sum = self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
}

#[derive(Clone, Copy, Default)]
struct AdapterCounts {
    requests: u64,
    prompt_tokens: u64,
    generated_tokens: u64,
}

/// Reason why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    Stop,
    Length,
    Abort,
    Error,
}

/// The part of an exchange for which a client took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlowPart {
    /// The headers of the next request. Idle connections end for this reason.
    Headers,
    Body,
    Response,
}

#[derive(Default)]
pub(crate) struct Metrics {
    ended: [AtomicU64; 4],
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    rejected: AtomicU64,
    connections: AtomicU64,
    timeouts: [AtomicU64; 3],
    loads_from_disk: AtomicU64,
    loads_from_hub: AtomicU64,
    pub load_time: Histogram,
    pub queue_time: Histogram,
    pub first_token: Histogram,
    pub next_token: Histogram,
    pub whole_request: Histogram,
    adapters: Mutex<HashMap<String, AdapterCounts>>,
}

/// Current values that the caller reads from the engine and the registry.
pub(crate) struct Gauges {
    pub model: String,
    pub running: usize,
    pub waiting: usize,
    pub kv_used: usize,
    pub kv_total: usize,
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    pub preemptions: u64,
    pub resident_adapters: Vec<String>,
    pub waiting_adapters: Vec<String>,
    pub resident_bytes: u64,
    pub evictions: u64,
    pub leases: usize,
}

impl Metrics {
    /// Counts an ended request and its tokens. `adapter` is `None` for the base.
    pub fn request_ended(&self, adapter: Option<&str>, prompt_tokens: usize, generated_tokens: usize) {
        self.prompt_tokens.fetch_add(prompt_tokens as u64, Ordering::Relaxed);
        self.generated_tokens.fetch_add(generated_tokens as u64, Ordering::Relaxed);
        let Some(adapter) = adapter else { return };
        let mut adapters = self.adapters.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = adapters.len() < MAX_ADAPTERS || adapters.contains_key(adapter);
        let name = if has_room { adapter } else { OTHER };
        let counts = adapters.entry(name.to_owned()).or_default();
        counts.requests += 1;
        counts.prompt_tokens += prompt_tokens as u64;
        counts.generated_tokens += generated_tokens as u64;
    }

    pub fn choice_ended(&self, reason: EndReason) {
        self.ended[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn request_rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    pub fn connection_opened(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub fn connection_closed(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn client_timed_out(&self, part: SlowPart) {
        self.timeouts[part as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn adapter_loaded(&self, from: &str, duration: Duration) {
        let counter = if from == "hub" { &self.loads_from_hub } else { &self.loads_from_disk };
        counter.fetch_add(1, Ordering::Relaxed);
        self.load_time.add(duration);
    }

    /// Returns the response text of `/metrics`.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut out = String::new();
        let labels = format!("model_name=\"{}\",engine=\"0\"", escaped(&gauges.model));
        self.write_engine(&mut out, gauges, &labels);
        for (histogram, name) in [
            (&self.first_token, "vllm:time_to_first_token_seconds"),
            (&self.next_token, "vllm:inter_token_latency_seconds"),
            (&self.whole_request, "vllm:e2e_request_latency_seconds"),
            (&self.queue_time, "vllm:request_queue_time_seconds"),
            (&self.load_time, "danlu_adapter_load_seconds"),
        ] {
            histogram.write(&mut out, name, &labels);
        }
        self.write_adapters(&mut out, gauges);
        self.write_connections(&mut out);
        out
    }

    fn write_connections(&self, out: &mut String) {
        let open = self.connections.load(Ordering::Relaxed);
        let _ = writeln!(out, "# TYPE danlu_connections gauge\ndanlu_connections {open}");
        let _ = writeln!(out, "# TYPE danlu_client_timeouts_total counter");
        for (part, counter) in ["headers", "body", "response"].iter().zip(&self.timeouts) {
            let count = counter.load(Ordering::Relaxed);
            let _ = writeln!(out, "danlu_client_timeouts_total{{part=\"{part}\"}} {count}");
        }
    }

    fn write_engine(&self, out: &mut String, gauges: &Gauges, labels: &str) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let usage = gauges.kv_used as f64 / (gauges.kv_total.max(1)) as f64;
        for (name, kind, value) in [
            ("vllm:num_requests_running", "gauge", gauges.running as f64),
            ("vllm:num_requests_waiting", "gauge", gauges.waiting as f64),
            ("vllm:kv_cache_usage_perc", "gauge", usage),
            ("vllm:prompt_tokens_total", "counter", load(&self.prompt_tokens)),
            ("vllm:generation_tokens_total", "counter", load(&self.generated_tokens)),
            ("vllm:prefix_cache_queries_total", "counter", gauges.prefix_queries as f64),
            ("vllm:prefix_cache_hits_total", "counter", gauges.prefix_hits as f64),
            ("vllm:num_preemptions_total", "counter", gauges.preemptions as f64),
        ] {
            let _ = writeln!(out, "# TYPE {name} {kind}\n{name}{{{labels}}} {value}");
        }
        let _ = writeln!(out, "# TYPE vllm:request_success_total counter");
        for (reason, counter) in ["stop", "length", "abort", "error"].iter().zip(&self.ended) {
            let ended = load(counter);
            let _ =
                writeln!(out, "vllm:request_success_total{{{labels},finished_reason=\"{reason}\"}} {ended}");
        }
        let rejected = load(&self.rejected);
        let _ = writeln!(out, "# TYPE vllm:admission_rejections_total counter");
        let _ = writeln!(out, "vllm:admission_rejections_total{{{labels},reason=\"queue_full\"}} {rejected}");
    }

    fn write_adapters(&self, out: &mut String, gauges: &Gauges) {
        let now =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let names = |names: &[String]| escaped(&names.join(","));
        let (running, waiting) = (names(&gauges.resident_adapters), names(&gauges.waiting_adapters));
        // The names are labels, so each combination of names is a separate series. Only the series of the
        // current names is written, because readers use only the newest one.
        let _ = writeln!(
            out,
            "# TYPE vllm:lora_requests_info gauge\nvllm:lora_requests_info{{max_lora=\"{}\",\
             running_lora_adapters=\"{running}\",waiting_lora_adapters=\"{waiting}\"}} {now}",
            gauges.resident_adapters.len().max(1),
        );
        for (name, kind, value) in [
            ("danlu_adapter_resident_bytes", "gauge", gauges.resident_bytes),
            ("danlu_adapter_leases", "gauge", gauges.leases as u64),
            ("danlu_adapter_evictions_total", "counter", gauges.evictions),
        ] {
            let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {value}");
        }
        let _ = writeln!(out, "# TYPE danlu_adapter_loads_total counter");
        for (from, counter) in [("disk", &self.loads_from_disk), ("hub", &self.loads_from_hub)] {
            let loads = counter.load(Ordering::Relaxed);
            let _ = writeln!(out, "danlu_adapter_loads_total{{from=\"{from}\"}} {loads}");
        }
        let adapters = self.adapters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut adapters: Vec<_> = adapters.iter().collect();
        adapters.sort_by_key(|(name, _)| name.as_str());
        for (name, value) in [
            ("danlu_adapter_requests_total", (|counts| counts.requests) as fn(&AdapterCounts) -> u64),
            ("danlu_adapter_prompt_tokens_total", |counts| counts.prompt_tokens),
            ("danlu_adapter_generation_tokens_total", |counts| counts.generated_tokens),
        ] {
            let _ = writeln!(out, "# TYPE {name} counter");
            for (adapter, counts) in &adapters {
                let _ = writeln!(out, "{name}{{adapter=\"{}\"}} {}", escaped(adapter), value(counts));
            }
        }
    }
}

/// Escapes the value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_beyond_the_limit_share_a_label() {
        let metrics = Metrics::default();
        for i in 0..MAX_ADAPTERS + 5 {
            metrics.request_ended(Some(&format!("a\"{i}")), 1, 2);
        }
        let adapters = metrics.adapters.lock().unwrap();
        assert_eq!(adapters.len(), MAX_ADAPTERS + 1);
        assert_eq!(adapters[OTHER].requests, 5);
    }

    #[test]
    fn buckets_of_a_histogram_are_cumulative() {
        let histogram = Histogram::default();
        for millis in [3, 30, 30, 500_000] {
            histogram.add(Duration::from_millis(millis));
        }
        let mut out = String::new();
        histogram.write(&mut out, "x", "a=\"b\"");
        for line in
            ["x_bucket{a=\"b\",le=\"0.005\"} 1", "x_bucket{a=\"b\",le=\"0.04\"} 3", "x_count{a=\"b\"} 4"]
        {
            assert!(out.contains(line), "{out}");
        }
        assert!(out.contains("le=\"80\"} 3\n") && out.contains("le=\"+Inf\"} 4"), "{out}");
    }
}
