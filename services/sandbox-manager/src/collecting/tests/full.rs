//! More than there can be is refused by its reason.

use berth_domain::{claims::CLAIMS_MAX, work_leases::LEASES_MAX};

use super::*;

#[tokio::test]
async fn one_more_claim_than_a_lease_can_have_is_refused_by_its_field() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let worker = manager.worker(BLOBS, &blob(1)).await;
    let claim = |numbers: std::ops::Range<usize>| {
        let blob = |number| Claimed::Blob {
            digest: format!("sha256:00{number:062x}"),
        };
        let objects = numbers.map(|it| (blob(it), 1)).collect();
        let lease = worker.lease.clone();
        let registry = &manager.registry;
        registry.claim_deletions(worker.run, lease, objects, u64::MAX)
    };
    let granted = claim(0..CLAIMS_MAX).await.unwrap();
    let is_granted = |it: &Answer| matches!(it, Answer::Granted { .. });
    assert!(granted.iter().all(is_granted));
    let refused = claim(CLAIMS_MAX..CLAIMS_MAX + 1).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidField);
    assert_eq!(refused.violations[0].field, "objects");
    let again = claim(0..1).await.unwrap();
    assert!(again.iter().all(is_granted), "it is one of them");
}

#[tokio::test]
async fn one_more_lease_than_there_can_be_is_refused_by_its_reason() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let collecting = manager.registry.collecting();
    let acquire = |number: usize| {
        let asked = Asked {
            name: format!("work/{number}"),
            holder: "worker".into(),
            time_to_live: Duration::from_secs(600),
            attributes: BTreeMap::new(),
        };
        collecting.acquire(manager.registry.store(), asked)
    };
    for number in 0..LEASES_MAX {
        acquire(number).await.unwrap();
    }
    let refused = acquire(LEASES_MAX).await.unwrap_err();
    assert_eq!(refused.reason, Reason::WorkLeasesExhausted);
    assert_eq!(refused.metadata["limit"], LEASES_MAX.to_string());
}
