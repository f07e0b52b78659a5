//! The budget of a decision.

use crate::one_decision::{REVIEW, WebhookState, decide};

/// The view allocates lists and maps, and the patch its operations with their values: 73 allocations. More allocations mean that
/// something else of the pod is built as a tree, or copied as text.
const ALLOCATIONS: u64 = 80;

#[test]
fn a_decision_stays_within_its_allocations() {
    let state = WebhookState::default();
    let mut answer = Vec::new();
    let used = allocation_counter::measure(|| answer = decide(&state, REVIEW).unwrap());
    assert!(String::from_utf8(answer).unwrap().contains("patchType"), "the decision changes the pod");
    assert!(used.count_total <= ALLOCATIONS, "{used:?}");
}
