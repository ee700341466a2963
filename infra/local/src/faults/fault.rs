//! A fault: what goes wrong between the functions and what is behind them, with which requests, and until when. Set from
//! the terminal, kept in the supervisor, carried out by the proxies. None outlives its time or the twin.

use anyhow::{Result, ensure};
use axum::http::{HeaderName, HeaderValue, header, request::Parts};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

/// What goes wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
pub(crate) struct Fault {
    #[command(subcommand)]
    pub(crate) kind: Kind,
    /// Only requests with this method.
    #[arg(long, global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<String>,
    /// Only requests with this in their path or query.
    #[arg(long, global = true, value_name = "PART")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    /// Only requests signed for this AWS service: s3, secretsmanager, eks.
    #[arg(long, global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    /// Not the first so many of these requests.
    #[arg(long, global = true, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<u32>,
    /// Only the first so many of these requests.
    #[arg(long, global = true, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) times: Option<u32>,
    /// Ends by itself after so long.
    #[arg(long, global = true, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Nobody listens: connections are refused, open ones have ended. Of all requests.
    Refuse,
    /// Another authority has signed the certificate (`.local/state/pki/other-ca.crt`). Of all requests; open connections
    /// have ended.
    Authority,
    /// Passes requests on and holds the answers back.
    Slow {
        /// Seconds for which each answer is held.
        delay: u64,
    },
    /// Answers in place of what is behind.
    Answer {
        #[arg(value_parser = clap::value_parser!(u16).range(200..=599))]
        status: u16,
        /// As `Name: value`; can be repeated.
        #[arg(long = "header", value_name = "HEADER")]
        headers: Vec<String>,
        #[arg(long, default_value = "")]
        body: String,
    },
    /// Ends the connection in place of passing a request on.
    Cut,
    /// Passes requests on and ends the connection in place of the answer: it is done, and nobody is told.
    Lose,
}

/// A fault's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// Between the functions and the Kubernetes API.
    Cluster,
    /// Between the functions and AWS.
    Aws,
}

/// How a proxy meets those who connect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Door {
    #[default]
    Open,
    Closed,
    /// With the certificate of another authority.
    Strange,
}

// === impl Fault ===

impl Fault {
    /// Refuses what could not be carried out.
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

    pub(crate) fn is_of(&self, request: &Parts) -> bool {
        let path = request.uri.path_and_query().map_or("", |path| path.as_str());
        // Of `AWS4-HMAC-SHA256 Credential=<key>/<date>/<region>/<service>/aws4_request, ...`.
        let signature = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
        self.door() == Door::Open
            && self.method.as_ref().is_none_or(|method| request.method.as_str().eq_ignore_ascii_case(method))
            && self.path.as_ref().is_none_or(|part| path.contains(part.as_str()))
            && self.service.as_ref().is_none_or(|service| signature.contains(&format!("/{service}/aws4_request")))
    }
}

/// A header as it is written on the command line.
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

    /// A fault as it is typed.
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
