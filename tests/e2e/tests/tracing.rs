//! What a request is known by behind the functions and in their logs.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    World,
    runtime::{Event, EventBody, Function, TRACE_ID, environment},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

const ASKED_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_trace_goes_on_behind_the_function_and_stands_in_its_log() -> Result<()> {
    let world = World::meet()?;
    // In the place of AWS: it keeps the first request and refuses it.
    let aws = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let mut environment = environment(&world, "status").await?;
    environment.insert("AWS_ENDPOINT_URL".to_owned(), format!("http://{}", aws.local_addr()?));
    environment.insert("AWS_LAMBDA_LOG_FORMAT".to_owned(), "JSON".to_owned());
    let asked = tokio::spawn(async move {
        let (mut connection, _) = aws.accept().await?;
        let mut request = vec![0; 16 * 1024];
        let length = connection.read(&mut request).await?;
        connection.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await?;
        anyhow::Ok(String::from_utf8_lossy(request.get(..length).unwrap_or_default()).into_owned())
    });
    let function = Function::spawn(&Function::bootstrap(&world, "status")?, environment).await?;
    let event = Event {
        method: "GET".to_owned(),
        path: "/train/traced".to_owned(),
        query: String::new(),
        headers: vec![("x-trainer-token".to_owned(), world.twin.setting("TRAINER_API_TOKEN")?.to_owned())],
        body: EventBody::Absent,
    };
    let reply = function.invoke(&event.to_json()).await?;
    let asked = timeout(ASKED_WITHIN, asked).await.context("AWS was not asked")???;
    ensure!(reply.status == 503, "{}", reply.status);
    let header = format!("x-amzn-trace-id: {}", TRACE_ID.to_ascii_lowercase());
    ensure!(asked.to_ascii_lowercase().contains(&header), "no trace in:\n{asked}");
    let log = function.end().await?;
    let line =
        log.lines().find(|line| line.contains("auth_unavailable")).with_context(|| format!("no line:\n{log}"))?;
    ensure!(line.contains(TRACE_ID) && line.contains(&reply.request_id), "no trace or request id in: {line}");
    Ok(())
}
