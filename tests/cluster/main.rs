//! Tests on a real control plane: etcd, kube-apiserver, scheduler and controller-manager, with the real webhook and controller.
//!
//! Most tests share one control plane and one webhook, and work in namespaces of their own. Tests that install, change or remove
//! what exists once in a cluster get a [`harness::Sandbox`].

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
mod hostile_objects;
mod identity_command;
mod identity_label;
mod identity_reconciler;
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
