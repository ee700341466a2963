//! The program itself, on an S3 that has no run: its exit code, whoever listens to it and however it ends.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    process::{Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

const EMPTY: &str = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";

/// An S3 with nothing in it, or one that never answers. Its URL, and a word for each request.
fn s3(is_answering: bool) -> (String, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (asked, requests) = channel();
    thread::spawn(move || {
        let mut unanswered = Vec::new();
        for connection in listener.incoming() {
            let mut connection = connection.expect("a connection");
            let lines = BufReader::new(connection.try_clone().expect("a connection")).lines();
            let _ = lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).count();
            let _ = asked.send(());
            if is_answering {
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", EMPTY.len());
                let _ = connection.write_all(format!("{head}{EMPTY}").as_bytes());
            } else {
                unanswered.push(connection);
            }
        }
    });
    (url, requests)
}

fn reindex(url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reindex"));
    command.arg("s3://bucket/rnus").env_clear().envs([
        ("AWS_ENDPOINT_URL", url),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_base_without_runs_is_a_failure_that_is_told() {
    let Output { status, stdout, stderr } = reindex(&s3(true).0).output().expect("it runs");
    let [stdout, stderr] = [stdout, stderr].map(|text| String::from_utf8(text).expect("text"));
    assert_eq!(status.code(), Some(2), "{stdout}{stderr}");
    assert_eq!(stdout, "0 steps of 0 runs compared, 0 repaired, 1 failed\n");
    assert_eq!(stderr, "0 runs\ns3://bucket/rnus: failed: there is no run at or below it\n");
}

#[test]
fn it_goes_on_where_nobody_listens_to_its_errors() {
    let mut child = reindex(&s3(true).0).spawn().expect("it runs");
    drop(child.stderr.take());
    let mut said = String::new();
    child.stdout.take().expect("its output").read_to_string(&mut said).expect("text");
    assert_eq!(child.wait().expect("an end").code(), Some(2));
    assert_eq!(said, "0 steps of 0 runs compared, 0 repaired, 1 failed\n");
}

#[test]
fn ended_by_a_person_it_says_so_whoever_listens() {
    for is_heard in [true, false] {
        let (url, requests) = s3(false);
        let mut child = reindex(&url).spawn().expect("it runs");
        let stdout = child.stdout.take().filter(|_| is_heard);
        requests.recv().expect("a request");
        // Until it hears of signals, which it begins to at the same time.
        thread::sleep(Duration::from_millis(500));
        let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
        assert_eq!(child.wait().expect("an end").code(), Some(130), "heard: {is_heard}");
        drop(stdout);
    }
}
