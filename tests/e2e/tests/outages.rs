//! Components of the twin that stop and come back. Alone, because every other test needs them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::World;
use serde_json::json;
use tokio::time::sleep;

#[tokio::test]
async fn an_api_server_that_is_away_is_a_503_and_its_return_is_noticed() -> Result<()> {
    let world = World::meet()?;
    let name = world.submit(&world.stub_request(&World::run_id("outage"), json!({"seconds": 1}))?).await?;
    let path = format!("/train/{name}");
    world.twin.get(&path).await?.expect(200)?;

    world.tell(&["stop", "kube-apiserver"]).await?;
    let asked = Instant::now();
    let away = world.twin.get(&path).await;
    let refused = world.twin.post("/train", &world.stub_request(&World::run_id("refused"), json!({}))?).await;
    let answered = asked.elapsed();
    // Whatever was answered: the twin must not stay without its API server.
    world.tell(&["start", "kube-apiserver"]).await?;
    let back = Instant::now();

    for answer in [away?, refused?] {
        assert_eq!((answer.status, answer.text("/code")), (503, "cluster_unavailable"), "{}", answer.body);
        assert_eq!(answer.content_type, "application/problem+json");
    }
    ensure!(answered < Duration::from_secs(10), "two answers took {answered:?}");
    loop {
        let answer = world.twin.get(&path).await?;
        if answer.status == 200 {
            return Ok(());
        }
        ensure!(back.elapsed() < Duration::from_secs(10), "still {}: {}", answer.status, answer.body);
        sleep(Duration::from_millis(300)).await;
    }
}
