//! Tests on a real control plane: etcd, kube-apiserver, scheduler and controller-manager, with the real webhook installed from
//! the real manifests.
//!
//! All tests share one control plane and one webhook. Each works in a namespace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod harness;

mod admission;
mod capacity;
mod certificates;
mod configuration;
mod controller;
mod drills;
mod enforcer;
mod explain;
mod guard;
mod identity;
mod identity_check;
mod identity_checks;
mod last_resort;
mod late;
mod missed;
mod monitoring;
mod outage;
mod overflow;
mod packaging;
mod quantities;
mod rbac;
mod reapply;
mod reasons;
mod reinvocation;
mod restricted;
mod scale_in;
mod scheduler;
mod scope;
mod serving;
mod switch;
mod unusable;
mod virtual_nodes;

mod generated;
#[path = "../generated_pods/mod.rs"]
mod generated_pods;
