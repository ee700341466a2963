//! The routes of the API: which method and path mean what. Whatever is not here is answered with a 404 or a 405. HEAD means
//! what GET means; its answer has no body (RFC 9110, section 9.3.2).

use crate::api::problem::{Code, Problem};

/// A whole number of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The least.
    pub min: u32,
    /// The greatest.
    pub max: u32,
    /// What it is when a query does not say.
    pub default: Option<u32>,
}

/// Jobs or checkpoints of a page.
pub const LIMIT: Count = Count { min: 1, max: 500, default: Some(50) };
/// Lines of a log.
pub const TAIL: Count = Count { min: 1, max: 10_000, default: Some(500) };
/// A rank; the last one of the largest job: 1,000 nodes with 64 processes each.
pub const RANK: Count = Count { min: 0, max: 63_999, default: None };
/// A start of a pod, or an attempt of a submission.
pub const ATTEMPT: Count = Count { min: 1, max: 1_000_000, default: None };

/// What a request asks for, with the parts of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// GET /healthz: does the function run.
    Health,
    /// GET /readyz: does everything behind it answer.
    Readiness,
    /// GET /openapi.json: the description of this API.
    OpenApi,
    /// POST /train
    Submit,
    /// GET /train
    List,
    /// GET /train/{name}
    Status(&'a str),
    /// DELETE /train/{name}
    Cancel(&'a str),
    /// POST /train/{name}/suspend
    Suspend(&'a str),
    /// POST /train/{name}/resume
    Resume(&'a str),
    /// GET /train/{name}/checkpoints
    Checkpoints(&'a str),
    /// GET /train/{name}/checkpoints/latest
    LatestCheckpoint(&'a str),
    /// GET /train/{name}/checkpoints/best
    BestCheckpoint(&'a str),
    /// GET /train/{name}/checkpoints/{step}
    Checkpoint(&'a str, &'a str),
    /// GET /train/{name}/logs
    Logs(&'a str),
    /// GET /train/{name}/events
    Events(&'a str),
    /// GET /settings/{framework}
    Settings(&'a str),
}

/// Why a request is for none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unrouted {
    /// No route has this path.
    Path,
    /// The path has routes, with these methods only: the value of an `Allow` header (RFC 9110, section 10.2.1).
    Method {
        /// Methods, separated by commas.
        allow: &'static str,
    },
}

// === impl Route ===

impl<'a> Route<'a> {
    /// The route of a request, by its method and its path as the event has it: nothing is decoded or normalised here. An
    /// HTTP API has decoded it before, so that `/train/x%2Flogs` is the route of `/train/x/logs`: harmless, because no
    /// name has a slash and no route means less than another.
    ///
    /// # Errors
    /// There is none.
    pub fn of(method: &str, path: &'a str) -> Result<Self, Unrouted> {
        let mut segments = path.split('/');
        if segments.next() != Some("") {
            return Err(Unrouted::Path);
        }
        let segments: Vec<&str> = segments.take(5).collect();
        if segments.iter().any(|segment| segment.is_empty()) {
            return Err(Unrouted::Path);
        }
        let method = if method == "HEAD" { "GET" } else { method };
        let get = |route| if method == "GET" { Ok(route) } else { Err(Unrouted::Method { allow: "GET, HEAD" }) };
        let post = |route| if method == "POST" { Ok(route) } else { Err(Unrouted::Method { allow: "POST" }) };
        match segments.as_slice() {
            ["healthz"] => get(Self::Health),
            ["readyz"] => get(Self::Readiness),
            ["openapi.json"] => get(Self::OpenApi),
            ["train"] => match method {
                "POST" => Ok(Self::Submit),
                "GET" => Ok(Self::List),
                _ => Err(Unrouted::Method { allow: "GET, HEAD, POST" }),
            },
            ["train", name] => match method {
                "GET" => Ok(Self::Status(name)),
                "DELETE" => Ok(Self::Cancel(name)),
                _ => Err(Unrouted::Method { allow: "DELETE, GET, HEAD" }),
            },
            ["train", name, "suspend"] => post(Self::Suspend(name)),
            ["train", name, "resume"] => post(Self::Resume(name)),
            ["train", name, "checkpoints"] => get(Self::Checkpoints(name)),
            ["train", name, "checkpoints", "latest"] => get(Self::LatestCheckpoint(name)),
            ["train", name, "checkpoints", "best"] => get(Self::BestCheckpoint(name)),
            ["train", name, "checkpoints", step] => get(Self::Checkpoint(name, step)),
            ["train", name, "logs"] => get(Self::Logs(name)),
            ["train", name, "events"] => get(Self::Events(name)),
            ["settings", framework] => get(Self::Settings(framework)),
            _ => Err(Unrouted::Path),
        }
    }
}

// === impl Unrouted ===

impl Unrouted {
    /// What the caller is told. A path is shown only up to a length, so that it cannot fill an answer.
    #[must_use]
    pub fn problem(self, method: &str, path: &str) -> Problem {
        let path: String = path.chars().take(256).collect();
        match self {
            Self::Path => Problem::new(
                Code::RouteNotFound,
                format!("there is no route {path}; GET /openapi.json lists the routes (none ends in a slash)"),
            ),
            Self::Method { allow } => {
                let method: String = method.chars().take(32).collect();
                Problem::new(Code::MethodNotAllowed, format!("{path} does not take {method}; it takes {allow}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_has_one_method_and_path() {
        for (method, path, route) in [
            ("GET", "/healthz", Route::Health),
            ("GET", "/readyz", Route::Readiness),
            ("GET", "/openapi.json", Route::OpenApi),
            ("POST", "/train", Route::Submit),
            ("GET", "/train", Route::List),
            ("GET", "/train/a", Route::Status("a")),
            ("DELETE", "/train/a", Route::Cancel("a")),
            ("POST", "/train/a/suspend", Route::Suspend("a")),
            ("POST", "/train/a/resume", Route::Resume("a")),
            ("GET", "/train/a/checkpoints", Route::Checkpoints("a")),
            ("GET", "/train/a/checkpoints/latest", Route::LatestCheckpoint("a")),
            ("GET", "/train/a/checkpoints/best", Route::BestCheckpoint("a")),
            ("GET", "/train/a/checkpoints/500", Route::Checkpoint("a", "500")),
            ("GET", "/train/a/logs", Route::Logs("a")),
            ("GET", "/train/a/events", Route::Events("a")),
            ("GET", "/settings/a", Route::Settings("a")),
            // What no gateway has decoded is part of the name, which then no job has.
            ("GET", "/train/a%2Fb", Route::Status("a%2Fb")),
        ] {
            assert_eq!(Route::of(method, path), Ok(route), "{method} {path}");
            let head = Route::of("HEAD", path);
            let is_read = method == "GET" || ["/train", "/train/a"].contains(&path);
            assert_eq!(head, if is_read { Route::of("GET", path) } else { Err(Unrouted::Method { allow: "POST" }) });
            assert!(matches!(Route::of("PATCH", path), Err(Unrouted::Method { .. })), "PATCH {path}");
            assert_eq!(Route::of(method, &format!("{path}/")), Err(Unrouted::Path), "{path}/");
        }
    }

    #[test]
    fn whatever_is_no_route_says_so() {
        for path in [
            "",
            "/",
            "//",
            "/train/",
            "/train//logs",
            "/Train",
            "/train/a/b",
            "/settings",
            "/settings/a/b",
            "/train/a/b/c/d",
            "train",
            "/a/b/c/d/e/f",
        ] {
            assert_eq!(Route::of("GET", path), Err(Unrouted::Path), "{path}");
        }
        assert_eq!(Route::of("get", "/train"), Err(Unrouted::Method { allow: "GET, HEAD, POST" }));
        let problem = Unrouted::Method { allow: "GET, HEAD, POST" }.problem("PUT", "/train");
        assert_eq!(problem.detail, "/train does not take PUT; it takes GET, HEAD, POST");
    }
}
