//! The function that keeps the index of checkpoints from S3 events. It has no access to the cluster.

use std::time::Duration;

use indexer::Indexer;
use lambda_runtime::{Error, LambdaEvent, service_fn, tracing};
use training_core::settings::Settings;
use training_store::Store;

/// Nobody waits for an event; it is redelivered when it fails.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(5);
const CALL_WITHIN: Duration = Duration::from_secs(15);

// Lambda sends one request at a time: more threads would only cost at a cold start.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let runs_base_uris = Settings::new(|name| std::env::var(name).ok()).list("RUNS_BASE_URIS")?;
    let aws = training_aws::config(ATTEMPT_WITHIN, CALL_WITHIN).await?;
    let indexer = Indexer { store: Store::new(aws_sdk_s3::Client::new(&aws)), runs_base_uris };
    let handle =
        async |event: LambdaEvent<serde_json::Value>| indexer.handle(&event.payload).await.map_err(Error::from);
    lambda_runtime::run(service_fn(handle)).await
}
