//! The budget of a decision.

use crate::one_decision::{REVIEW, Surroundings, decide};

/// Besides the buffers of patch and answer, the view allocates lists and maps. More allocations mean that something is built as a
/// tree, or copied as text on its way into the patch.
const ALLOCATIONS: u64 = 30;

#[test]
fn a_decision_stays_within_its_allocations() {
    let surroundings = Surroundings::default();
    let mut answer = Vec::new();
    let used = allocation_counter::measure(|| answer = decide(&surroundings, REVIEW).unwrap());
    assert!(String::from_utf8(answer).unwrap().contains("patchType"), "the pod is changed");
    assert!(used.count_total <= ALLOCATIONS, "{used:?}");
}
