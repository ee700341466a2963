//! Metrics, as log lines in the embedded metric format: the log service makes metrics of them by itself, and the function
//! makes no call. Source: Amazon `CloudWatch` User Guide, "Specification: Embedded metric format".

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use training_core::api::problem::Code;

/// Namespace of the metrics.
const NAMESPACE: &str = "TrainingControlPlane";

/// Whether this environment has answered a request before.
static IS_WARM: AtomicBool = AtomicBool::new(false);

/// What is counted of a request.
pub(crate) struct Measured {
    /// The problem that it was answered with.
    pub(crate) code: Option<Code>,
    /// From its arrival to its answer.
    pub(crate) duration: Duration,
    /// Of that, the time in which the cluster was asked; calls at the same time count each.
    pub(crate) cluster: Duration,
    /// Name of the function.
    pub(crate) function: String,
}

/// Write the line of a request.
pub(crate) fn emit(measured: &Measured) {
    let is_cold_start = !IS_WARM.swap(true, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A metric that cannot be written is no reason to fail a request.
    let _ = writeln!(std::io::stdout().lock(), "{}", line(measured, is_cold_start, now));
}

fn line(measured: &Measured, is_cold_start: bool, now: Duration) -> Value {
    let metric = |name: &str, unit: &str| json!({"Name": name, "Unit": unit});
    json!({
        "_aws": {
            "Timestamp": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            "CloudWatchMetrics": [{
                "Namespace": NAMESPACE,
                "Dimensions": [["Function"], ["Function", "Code"]],
                "Metrics": [
                    metric("Requests", "Count"),
                    metric("Duration", "Milliseconds"),
                    metric("ClusterTime", "Milliseconds"),
                    metric("ColdStarts", "Count"),
                ],
            }],
        },
        "Function": measured.function,
        "Code": measured.code.map_or("ok", Code::as_str),
        "Requests": 1,
        "Duration": milliseconds(measured.duration),
        "ClusterTime": milliseconds(measured.cluster),
        "ColdStarts": u8::from(is_cold_start),
    })
}

/// With three digits after the point.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_of_the_line_has_its_value() {
        let measured = Measured {
            code: Some(Code::JobConflict),
            duration: Duration::from_micros(12_345),
            cluster: Duration::from_millis(7),
            function: "submit".to_owned(),
        };
        let line = line(&measured, true, Duration::from_millis(1_795_468_558_123));
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        let names = |list: &Value, key: &str| -> Vec<String> {
            let names =
                list.as_array().into_iter().flatten().map(|item| if key.is_empty() { item } else { &item[key] });
            names.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        for name in names(&directive["Metrics"], "Name") {
            assert!(line[&name].is_number(), "{name}");
        }
        for dimension in names(&directive["Dimensions"][1], "") {
            assert!(line[&dimension].is_string(), "{dimension}");
        }
        assert_eq!((&line["Code"], &line["Duration"]), (&json!("job_conflict"), &json!(12.345)));
        assert_eq!(line["_aws"]["Timestamp"], json!(1_795_468_558_123_u64));
    }
}
