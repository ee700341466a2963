//! The function that changes jobs: create, replace, cancel, suspend and resume.
//!
//! ```text
//! request ─> handler ─┬─ submission: core's protocol says which call is next ─> lease ─> owner, record (bucket)
//!                     │                                                      ├─> start ─> checkpoint to resume, or run_exists (bucket)
//!                     │                                                      └─> name, dry run, create, delete (cluster)
//!                     └─ change: cancel, suspend, resume ─> cluster
//! ```
//! A `Service` is everything that a request needs. A `Submitting` is one request for a job on its way, with what its calls
//! have brought, and a `Placed` says how it ended. A `Change` is one of a job that is there.

mod change;
mod config;
mod handler;
mod service;
mod submission;
#[cfg(test)]
mod tests;

use config::Config;
use lambda_http::{Error, tracing};
use service::Service;
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
    let access = Access::new(config.cluster, aws_sdk_eks::Client::new(&aws), credentials, region);
    let service = Service {
        token: TokenCheck::new(aws_sdk_secretsmanager::Client::new(&aws), config.token_secret_arn),
        cluster: Cluster::new(access),
        store: Store::new(aws_sdk_s3::Client::new(&aws)),
        rules: config.rules,
        platform: config.platform,
    };
    training_http::serve(|request| service.handle(request)).await
}
