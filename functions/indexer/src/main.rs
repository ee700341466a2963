//! The function that keeps the index of checkpoints from S3 events. It has no access to the cluster.

mod handler;

use aws_config::{BehaviorVersion, timeout::TimeoutConfig};
use handler::Indexer;
use lambda_runtime::{Error, LambdaEvent, service_fn, tracing};
use std::time::Duration;
use training_core::settings::Settings;
use training_store::Store;

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let runs_base_uris = Settings::new(|name| std::env::var(name).ok()).list("RUNS_BASE_URIS")?;
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(2))
        .operation_attempt_timeout(Duration::from_secs(5))
        .operation_timeout(Duration::from_secs(15))
        .build();
    let aws = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts).load().await;
    let indexer = Indexer { store: Store::new(aws_sdk_s3::Client::new(&aws)), runs_base_uris };
    lambda_runtime::run(service_fn(|event: LambdaEvent<serde_json::Value>| indexer.handle(event.payload))).await
}
