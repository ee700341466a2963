//! `Retry-After`: it stands where trying again may help, and not where only an operator can.

use aws_sdk_secretsmanager::{
    error::ErrorMetadata,
    operation::get_secret_value::{GetSecretValueError, GetSecretValueOutput},
};
use aws_smithy_mocks::{RuleMode, mock, mock_client};
use training_http::token::TokenCheck;
use training_store::testing::{Bucket, Treatment};

use super::world::{JOBS, World, job, job_row, refusal, row};

#[tokio::test]
async fn a_cluster_that_lacks_something_does_not_ask_to_be_asked_again() {
    for (status, message, code, retry_after) in [
        (404, "the server could not find the requested resource", "cluster_not_ready", None),
        (404, r#"namespaces "training" not found"#, "cluster_not_ready", None),
        (500, r#"failed calling webhook "validator": connection refused"#, "cluster_not_ready", Some("30")),
        (503, "storage is (re)initializing", "cluster_unavailable", Some("5")),
        (403, "pytorchjobs.kubeflow.org is forbidden", "cluster_denied", None),
    ] {
        let world = World::with_cluster(vec![row(JOBS, status, refusal(status, message))]);
        let answer = world.get("/train/j").await;
        assert_eq!((answer.code(), answer.header("retry-after")), (code, retry_after), "{message}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_bucket_that_denies_does_not_ask_to_be_asked_again() {
    for (status, code, retry_after) in [
        (403, "AccessDenied", None),
        (404, "NoSuchBucket", None),
        (400, "KMS.DisabledException", None),
        (503, "SlowDown", Some("5")),
        (400, "ExpiredToken", Some("5")),
    ] {
        let store = Bucket::default().store_judged_by(move |_| std::future::ready(Treatment::Refuse(status, code)));
        let answer = World::new(vec![job_row(&job("j"))], store).get("/train/j/checkpoints").await;
        assert_eq!((answer.status, answer.code()), (503, "storage_unavailable"), "{code}: {}", answer.text);
        assert_eq!(answer.header("retry-after"), retry_after, "{code}");
        assert_eq!(answer.detail().contains("ask your operator"), retry_after.is_none(), "{code}: {}", answer.detail());
    }
}

#[tokio::test]
async fn a_secret_that_is_no_good_does_not_ask_to_be_asked_again() {
    let denied = || GetSecretValueError::generic(ErrorMetadata::builder().code("AccessDeniedException").build());
    for (secret, retry_after) in [
        (mock!(aws_sdk_secretsmanager::Client::get_secret_value).then_error(denied), None),
        (
            mock!(aws_sdk_secretsmanager::Client::get_secret_value)
                .then_output(|| GetSecretValueOutput::builder().secret_string("{}").build()),
            None,
        ),
        (
            mock!(aws_sdk_secretsmanager::Client::get_secret_value)
                .then_error(|| GetSecretValueError::unhandled("Secrets Manager is away")),
            Some("5"),
        ),
    ] {
        let mut world = World::with_cluster(vec![]);
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, &[&secret]);
        world.handler.token = TokenCheck::new(secrets, "arn".to_owned());
        let answer = world.get("/train/j").await;
        assert_eq!((answer.code(), answer.header("retry-after")), ("auth_unavailable", retry_after), "{}", answer.text);
    }
}
