//! A fault between the functions and an upstream service: what fails, for which requests, and for how long.
//!
//! The terminal sets it, the supervisor keeps it, and a proxy carries it out. It ends with its time or with the twin.

use anyhow::{Result, ensure};
use axum::http::{HeaderName, HeaderValue, header, request::Parts};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

/// What fails, for which requests, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
pub(crate) struct Fault {
    #[command(subcommand)]
    pub(crate) kind: Kind,
    /// Affects only requests with this method.
    #[arg(long, global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<String>,
    /// Affects only requests with this text in their path or query.
    #[arg(long, global = true, value_name = "PART")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    /// Affects only requests that are signed for this AWS service: s3, secretsmanager, eks.
    #[arg(long, global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    /// Lets the first so many of these requests pass.
    #[arg(long, global = true, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<u32>,
    /// Ends after so many of these requests.
    #[arg(long, global = true, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) times: Option<u32>,
    /// Ends after so many seconds.
    #[arg(long, global = true, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
}

/// What fails.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Refuses connections and closes the open ones. Affects all requests.
    Refuse,
    /// Serves a certificate that another authority has signed (`.local/state/pki/other-ca.crt`), and closes open
    /// connections. Affects all requests.
    Authority,
    /// Passes requests on and delays the answers.
    Slow {
        /// The delay of each answer in seconds.
        delay: u64,
    },
    /// Answers in place of the upstream service.
    Answer {
        #[arg(value_parser = clap::value_parser!(u16).range(200..=599))]
        status: u16,
        /// A header as `Name: value`. The option can be repeated.
        #[arg(long = "header", value_name = "HEADER")]
        headers: Vec<String>,
        #[arg(long, default_value = "")]
        body: String,
    },
    /// Closes the connection in place of passing a request on.
    Cut,
    /// Passes requests on and closes the connection in place of the answer.
    Lose,
}

/// Where a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// Between the functions and the Kubernetes API.
    Cluster,
    /// Between the functions and AWS.
    Aws,
}

/// How a proxy treats those who connect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Door {
    #[default]
    Open,
    Closed,
    /// Open, with a certificate of another authority.
    Strange,
}

// === impl Fault ===

impl Fault {
    /// Fails for a fault that the proxy cannot carry out.
    pub(crate) fn check(&self, has_certificate: bool) -> Result<()> {
        if let Kind::Answer { headers, .. } = &self.kind {
            headers.iter().try_for_each(|header| parse_header(header).map(drop))?;
        }
        if self.door() == Door::Open {
            return Ok(());
        }
        ensure!(has_certificate || self.kind != Kind::Authority, "this proxy has no certificate");
        let is_of_all = self.method.is_none() && self.path.is_none() && self.service.is_none();
        let is_of_all = is_of_all && self.after.is_none() && self.times.is_none();
        ensure!(
            is_of_all,
            "this fault is one of all requests: it takes no --method, --path, --service, --after or --times"
        );
        Ok(())
    }

    pub(crate) fn door(&self) -> Door {
        match self.kind {
            Kind::Refuse => Door::Closed,
            Kind::Authority => Door::Strange,
            Kind::Slow { .. } | Kind::Answer { .. } | Kind::Cut | Kind::Lose => Door::Open,
        }
    }

    /// Whether the fault affects a request by itself. A fault of the door affects all by their connection.
    pub(crate) fn is_of(&self, request: &Parts) -> bool {
        let path = request.uri.path_and_query().map_or("", |path| path.as_str());
        // It reads `AWS4-HMAC-SHA256 Credential=<key>/<date>/<region>/<service>/aws4_request, ...`.
        let signature = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
        self.door() == Door::Open
            && self.method.as_ref().is_none_or(|method| request.method.as_str().eq_ignore_ascii_case(method))
            && self.path.as_ref().is_none_or(|part| path.contains(part.as_str()))
            && self.service.as_ref().is_none_or(|service| signature.contains(&format!("/{service}/aws4_request")))
    }
}

/// Parses a header of the command line.
pub(crate) fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    Ok((name.trim().parse()?, value.trim().parse()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::http::Request;
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        fault: Fault,
    }

    /// The fault of a command line.
    pub(crate) fn fault(line: &str) -> Fault {
        Line::try_parse_from(std::iter::once("fault").chain(line.split(' '))).map(|line| line.fault).unwrap()
    }

    pub(crate) fn request(method: &str, uri: &str, service: &str) -> Parts {
        let signature = format!("AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/{service}/aws4_request, Signature=0");
        Request::builder().method(method).uri(uri).header("authorization", signature).body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_fault_is_one_of_the_requests_that_it_names() {
        let request = request("POST", "/apis/x/pytorchjobs?dryRun=All", "s3");
        for (line, is_of) in [
            ("cut", true),
            ("cut --method post", true),
            ("cut --method GET", false),
            ("cut --path /pytorchjobs", true),
            ("cut --path dryRun=All", true),
            ("cut --path pods", false),
            ("cut --service s3", true),
            ("cut --service eks", false),
            ("cut --service s3 --method GET", false),
            ("refuse", false),
        ] {
            assert_eq!(fault(line).is_of(&request), is_of, "{line}");
        }
    }

    #[test]
    fn a_fault_says_what_it_cannot_do() {
        for (line, has_certificate, is_good) in [
            ("refuse", false, true),
            ("refuse --times 2", true, false),
            ("refuse --after 2", true, false),
            ("authority", true, true),
            ("authority", false, false),
            ("authority --path x", true, false),
            ("answer 429 --header retry-after:1", false, true),
            ("answer 429 --header :", false, false),
        ] {
            assert_eq!(fault(line).check(has_certificate).is_ok(), is_good, "{line}");
        }
        for line in ["answer 99", "slow", "cut --seconds 0", "cut --times 0", "explode"] {
            assert!(Line::try_parse_from(std::iter::once("fault").chain(line.split(' '))).is_err(), "{line}");
        }
    }
}
