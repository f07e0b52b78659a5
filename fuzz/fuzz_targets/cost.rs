//! Whatever the body: a decision takes at most a fixed time, plus a fixed time for each byte.

#![no_main]

mod mutation;

use std::{sync::LazyLock, time::Duration};

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use rustix::time::{ClockId, clock_gettime};
use spillway_core::{
    admission,
    burst::{self, ClusterContext, ServiceAccount},
    config::{Configuration, Overrides},
    eligibility::{LabelSelector, NetworkPolicy, Requirement},
};

const START: Duration = Duration::from_millis(2);
const NANOS_PER_BYTE: u64 = 200;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutation::mutate(data, size, max_size, seed)
});

fuzz_target!(|body: &[u8]| {
    let limit = START + Duration::from_nanos(NANOS_PER_BYTE * body.len() as u64);
    // The kernel can charge an interrupt to the thread. It does not do so three times in a row.
    let is_fast = (0..3).any(|_| time(body) <= limit);
    assert!(is_fast, "more than {limit:?} for {} bytes", body.len());
});

/// Returns the CPU time of a decision on this body.
fn time(body: &[u8]) -> Duration {
    let start = cpu_time();
    decide(body);
    cpu_time() - start
}

/// Returns the CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

static CONFIGURATION: LazyLock<Configuration> = LazyLock::new(Configuration::default);

/// Policies that compare each label that the pod lacks.
static POLICIES: LazyLock<Vec<NetworkPolicy>> = LazyLock::new(|| {
    let requirement = |i| Requirement { key: format!("k{i}"), operator: "DoesNotExist".to_owned(), values: Vec::new() };
    let match_expressions: Vec<_> = (0..400).map(requirement).collect();
    vec![NetworkPolicy {
        name: "p".to_owned(),
        pod_selector: LabelSelector { match_expressions, ..LabelSelector::default() },
    }]
});

/// Does the work of the webhook.
fn decide(body: &[u8]) {
    let Ok(review) = admission::parse(body) else {
        let _ = admission::recover_uid(body);
        return;
    };
    if let Some(old) = &review.old {
        let _ = burst::restore(&review.pod, old, &CONFIGURATION.virtual_nodes);
        return;
    }
    let overrides = Overrides::read(review.pod.annotations());
    let settings = CONFIGURATION.settings("high-scale", &Overrides::default(), &overrides);
    let cluster = ClusterContext {
        namespace: &review.namespace,
        network_policies: &POLICIES,
        ..ClusterContext::only(ServiceAccount::WithClientId)
    };
    let decision = burst::decide(&review.pod, &settings, &cluster);
    let _ = burst::json_patch(&review.pod, &decision).as_ref().map(admission::encode);
}
