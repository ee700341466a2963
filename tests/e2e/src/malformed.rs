//! Bodies by chance that are no good requests.

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};
use serde_json::{Map, Value, json};
use training_core::request::fields::{FIELDS, names};

use crate::generate::{Deployment, MAX_BODY, accepted, json_value, text, words};

/// A body that is no good request, or only by accident one.
#[derive(Clone, Debug)]
pub struct Malformed {
    /// How it was made.
    pub kind: &'static str,
    /// The body.
    pub bytes: Vec<u8>,
    /// The media type that it is sent with.
    pub content_type: Option<&'static str>,
    /// A change at random may leave a good request.
    pub may_be_good: bool,
}

type Bytes = BoxedStrategy<Vec<u8>>;

/// Bodies that are to be refused.
pub fn malformed(deployment: &Deployment) -> BoxedStrategy<Malformed> {
    prop_oneof![
        60 => no_json(deployment),
        25 => broken_rules(deployment),
        30 => changed(deployment),
        4 => other_media_type(deployment),
    ]
    .boxed()
}

/// What is no JSON text.
fn no_json(deployment: &Deployment) -> BoxedStrategy<Malformed> {
    let good = || accepted(deployment).prop_map(|body| body.to_string().into_bytes());
    let like_json = text(r#"[\[\]{}:,"0-9a-fnrtu\\. +-]{0,200}"#).prop_map(String::into_bytes);
    let cut =
        (good(), any::<Index>()).prop_map(|(body, at)| body.get(..at.index(body.len())).unwrap_or_default().to_vec());
    let number = prop_oneof![text("-?1e[1-9][0-9]{3}"), text("0{1,3}[0-9]"), text("[+.][0-9]{1,5}")].boxed();
    let surrogate = words(&[r#""\ud800""#, r#""\udc00x""#, r#"{"\udfff":1}"#, r#"["\ud83d\ud83d"]"#]);
    let nested = (200..20_000_usize, any::<bool>(), any::<bool>()).prop_map(|(depth, objects, is_closed)| {
        let (open, close) = if objects { (r#"{"a":"#, "}") } else { ("[", "]") };
        format!("{}1{}", open.repeat(depth), if is_closed { close.repeat(depth) } else { String::new() }).into_bytes()
    });
    let twice = accepted(deployment).prop_map(|body| {
        let text = body.to_string();
        format!(r#"{},"run_id":"again"}}"#, text.strip_suffix('}').unwrap_or_default()).into_bytes()
    });
    let sequences: Vec<&[u8]> = vec![&[0xff], &[0xc0, 0xaf], &[0xed, 0xa0, 0x80], &[0xf5, 0x80, 0x80, 0x80], &[0x80]];
    let not_utf8 = (good(), select(sequences), any::<Index>()).prop_map(|(mut body, sequence, at)| {
        let at = at.index(body.len() + 1);
        body.splice(at..at, sequence.iter().copied());
        body
    });
    let utf16 = good()
        .prop_map(|body| String::from_utf8_lossy(&body).encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>());
    let marked = good().prop_map(|body| [b"\xef\xbb\xbf", &body[..]].concat());
    prop_oneof![
        10 => never("bytes", vec(any::<u8>(), 0..300).boxed()),
        10 => never("like JSON", like_json.boxed()),
        10 => never("cut", cut.boxed()),
        4 => never("no number", with(deployment, words(&names()), number)),
        4 => never("a lone surrogate", with(deployment, words(&names()), surrogate)),
        4 => never("nested", nested.boxed()),
        4 => never("a field twice", twice.boxed()),
        4 => never("a byte order mark", marked.boxed()),
        6 => never("broken UTF-8", not_utf8.boxed()),
        2 => never("UTF-16", utf16.boxed()),
    ]
    .boxed()
}

/// JSON that breaks a rule for certain.
fn broken_rules(deployment: &Deployment) -> BoxedStrategy<Malformed> {
    let number = prop_oneof![text("[1-9][0-9]{30,300}"), text("-[1-9][0-9]{20,60}"), text("1e[12][0-9]{2}")].boxed();
    let fields = vec!["", "labels", "extra_args", "env", "env_from_secrets", "annotations"];
    let many = (select(fields), 100..16_000_usize).prop_map(|(field, count)| {
        let entries: Map<String, Value> = (0..count).map(|entry| (short_name(entry), json!(1))).collect();
        let body = if field.is_empty() { Value::Object(entries) } else { json!({field: entries}) };
        body.to_string().into_bytes()
    });
    let too_large = (accepted(deployment), 1..200_000_usize).prop_map(|(mut body, more)| {
        body["annotations"] = json!({"a": "x".repeat(MAX_BODY + more)});
        body.to_string().into_bytes()
    });
    let other = words(&["", " \r\n\t", "null", "true", "[]", "\"x\"", "{}", "0", "{", "}", "\u{0}"]);
    let null = || words(&["null"]);
    let required: Vec<_> = FIELDS.iter().filter(|field| field.is_required).map(|field| field.name).collect();
    let base = deployment.runs_base_uri.clone();
    let unlisted = select(vec!["\u{fffe}", "\u{ffff}", "\u{80}", "/../x", "//x", "-of-others"]);
    let base = unlisted.prop_map(move |end| Value::from(format!("{base}{end}")).to_string()).boxed();
    prop_oneof![
        4 => never("a number too large", with(deployment, words(&names()), number)),
        4 => never("an unknown field", with(deployment, text("[a-zA-Z~/ é]{1,200}[~/]"), null())),
        4 => never("a required field is null", with(deployment, words(&required), null())),
        2 => never("a base that is none", with(deployment, words(&["checkpoint_base_uri"]), base)),
        3 => never("something else", other.prop_map(String::into_bytes).boxed()),
        1 => never("many mistakes", many.boxed()),
        1 => never("too large", too_large.boxed()),
    ]
    .boxed()
}

/// Good bodies with changes by chance.
fn changed(deployment: &Deployment) -> BoxedStrategy<Malformed> {
    let good = accepted(deployment).prop_map(|body| body.to_string().into_bytes());
    let bytes = (good, vec((any::<Index>(), any::<u8>(), 0..3_u8), 1..6)).prop_map(|(mut body, changes)| {
        for (at, byte, change) in changes {
            let at = at.index(body.len());
            match change {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => drop(body.remove(at)),
            }
        }
        body
    });
    let changes = vec((select(names()), json_value()), 1..5);
    let types = (accepted(deployment), changes).prop_map(|(mut body, changes)| {
        for (field, value) in changes {
            body[field] = value;
        }
        body.to_string().into_bytes()
    });
    prop_oneof![1 => of("changed bytes", true, bytes.boxed()), 2 => of("changed types", true, types.boxed())].boxed()
}

/// Good bodies that are said to be something else.
fn other_media_type(deployment: &Deployment) -> BoxedStrategy<Malformed> {
    let media_types = vec![
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin1",
        "multipart/form-data; boundary=x",
    ];
    (accepted(deployment), select(media_types))
        .prop_map(|(body, media_type)| Malformed {
            kind: "another media type",
            bytes: body.to_string().into_bytes(),
            content_type: Some(media_type),
            may_be_good: false,
        })
        .boxed()
}

fn never(kind: &'static str, bytes: Bytes) -> BoxedStrategy<Malformed> {
    of(kind, false, bytes)
}

fn of(kind: &'static str, may_be_good: bool, bytes: Bytes) -> BoxedStrategy<Malformed> {
    let content_type = select(vec![None, Some("application/json"), Some("application/json; charset=utf-8")]);
    (bytes, content_type)
        .prop_map(move |(bytes, content_type)| Malformed { kind, bytes, content_type, may_be_good })
        .boxed()
}

/// Good bodies with a field whose value is written by hand, because no value of ours can hold it.
fn with(deployment: &Deployment, field: BoxedStrategy<String>, value: BoxedStrategy<String>) -> Bytes {
    (accepted(deployment), field, value)
        .prop_map(|(body, field, value)| {
            let mut fields = body.as_object().cloned().unwrap_or_default();
            fields.remove(&field);
            let rest = Value::Object(fields).to_string();
            format!("{{{}:{value},{}", Value::from(field), rest.trim_start_matches('{')).into_bytes()
        })
        .boxed()
}

/// A short name for each of many things, none of them a good one.
fn short_name(number: usize) -> String {
    const DIGITS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ~/";
    let digit = |of: usize| char::from(DIGITS[of % 64]);
    ['/', digit(number / 64 / 64), digit(number / 64), digit(number)].iter().collect()
}
