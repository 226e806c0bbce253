//! The rate limit in virtual time.

use std::time::Duration;

use agent::rate::RateLimit;

use crate::support::environment;

#[tokio::test(start_paused = true)]
async fn without_a_rate_nothing_waits() {
    let environment = environment();
    let before = environment.elapsed();
    RateLimit::none().pass(u64::MAX).await;
    assert_eq!(environment.elapsed(), before);
}

#[tokio::test(start_paused = true)]
async fn a_step_passes_at_once_and_the_next_one_pays_for_it() {
    let environment = environment();
    let limit = RateLimit::new(1_000, environment.clone());
    let mut passed = Vec::new();
    for bytes in [5_000, 1_000, 500, 0] {
        limit.pass(bytes).await;
        passed.push(environment.elapsed().as_millis());
    }
    assert_eq!(passed, [0, 5_000, 6_000, 6_500]);
}

#[tokio::test(start_paused = true)]
async fn time_without_a_flow_gives_no_credit() {
    let environment = environment();
    let limit = RateLimit::new(1_000, environment.clone());
    limit.pass(1_000).await;
    environment.sleep(Duration::from_secs(100)).await;
    limit.pass(1_000).await;
    assert_eq!(environment.elapsed(), Duration::from_secs(100));
    limit.pass(1).await;
    assert_eq!(environment.elapsed(), Duration::from_secs(101));
}

/// Several uploads share one limit: at no time more has passed than the rate allows, but for one step.
#[tokio::test(start_paused = true)]
async fn clones_share_one_rate() {
    const STEP: u64 = 700;
    let environment = environment();
    let limit = RateLimit::new(1_000, environment.clone());
    let passing = (0..20).map(|_| {
        let (limit, environment) = (limit.clone(), environment.clone());
        tokio::spawn(async move {
            limit.pass(STEP).await;
            environment.elapsed()
        })
    });
    let mut passed = Vec::new();
    for task in passing.collect::<Vec<_>>() {
        passed.push(task.await.unwrap());
    }
    passed.sort();
    for (number, at) in passed.iter().enumerate() {
        let before = STEP * number as u64;
        assert!(before <= at.as_millis() as u64, "{before} bytes had passed before {at:?}");
        assert!(at.as_millis() as u64 <= before + 1, "the rate is used: {before} bytes, {at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_of_nothing_is_one_byte_per_second() {
    let environment = environment();
    let limit = RateLimit::new(0, environment.clone());
    limit.pass(10).await;
    limit.pass(1).await;
    assert_eq!(environment.elapsed(), Duration::from_secs(10));
}
