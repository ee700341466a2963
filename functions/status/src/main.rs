//! The function that tells what became of a job. It writes nothing, and it answers every route that nobody else has.
//!
//! ```text
//! request ─> handler ─┬─ jobs ─────────> cluster, and what the trainer left in the bucket
//!                     ├─ checkpoints ──> store
//!                     ├─ logs ─────────> cluster; where it has none, archive ─> store
//!                     ├─ events ───────> cluster
//!                     └─ readiness ────> token, cluster, bucket
//! ```
//! A `Handler` is everything that a request needs. An `Asked` is a request that may read: its parameters, and who asks. An
//! `Archived` is the end of a log that lies in the bucket.

mod archive;
mod checkpoints;
mod config;
mod events;
mod handler;
mod jobs;
mod logs;
mod readiness;
#[cfg(test)]
mod tests;

use config::Config;
use handler::Handler;
use lambda_http::{Error, tracing};
use training_cluster::{Access, Cluster};
use training_core::settings::Settings;
use training_http::token::TokenCheck;
use training_store::Store;

// Lambda sends one request at a time: more threads would only cost at a cold start.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let config = Config::read(&Settings::new(|name| std::env::var(name).ok()))?;
    let aws = training_aws::config(training_http::AWS_ATTEMPT_WITHIN, training_http::AWS_CALL_WITHIN).await?;
    let credentials = aws.credentials_provider().ok_or("no AWS credentials provider")?;
    let region = aws.region().ok_or("AWS_REGION is not set")?.to_string();
    let namespaces = config.cluster.namespaces.clone();
    let access = Access::new(config.cluster, aws_sdk_eks::Client::new(&aws), credentials, region);
    let handler = Handler {
        token: TokenCheck::new(aws_sdk_secretsmanager::Client::new(&aws), config.token_secret_arn),
        cluster: Cluster::new(access),
        namespaces,
        store: Store::new(aws_sdk_s3::Client::new(&aws)),
        runs_base_uris: config.runs_base_uris,
    };
    training_http::serve(|request| handler.handle(request)).await
}
