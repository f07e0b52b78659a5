//! What a story has shown: a table, claims, and a chart.

use std::{fmt::Write, fs, path::Path};

use crate::{
    chart::{self, Panel},
    stage::wait_for_age,
    timeline::{Counts, Timeline},
};

/// What a story claims, and whether it came true.
#[derive(Debug)]
pub(crate) struct Claim {
    text: String,
    holds: bool,
}

/// A row of a story's table.
#[derive(Debug)]
struct Row {
    scene: String,
    group: &'static str,
    /// On each VM, such as `8/8/8`.
    vms: String,
    counts: Counts,
    remark: String,
}

/// What a story has shown so far.
#[derive(Debug)]
pub(crate) struct Story {
    letter: &'static str,
    title: &'static str,
    /// What is done, in a sentence or two.
    about: &'static str,
    rows: Vec<Row>,
    claims: Vec<Claim>,
    panels: Vec<Panel>,
}

impl Story {
    pub(crate) fn new(letter: &'static str, title: &'static str, about: &'static str) -> Self {
        Self { letter, title, about, rows: Vec::new(), claims: Vec::new(), panels: Vec::new() }
    }

    /// Where the pods are now.
    pub(crate) fn row(&mut self, scene: &str, group: &'static str, timeline: &Timeline, remark: String) {
        let nodes = timeline.nodes().into_iter().filter(|(node, _)| node.starts_with("vm-"));
        let vms: Vec<_> = nodes.map(|(_, count)| count.to_string()).collect();
        let counts = timeline.now();
        println!("  {scene}, {group}: {counts:?} {remark}");
        self.rows.push(Row { scene: scene.to_owned(), group, vms: vms.join("/"), counts, remark });
    }

    pub(crate) fn claim(&mut self, text: impl Into<String>, holds: bool) {
        self.claims.push(Claim { text: text.into(), holds });
    }

    /// What of it the chart is to show, side by side. It goes on for a while, so that it is seen that nothing more happens.
    pub(crate) fn panel(&mut self, title: impl Into<String>, timeline: &Timeline) {
        wait_for_age(timeline.began(), timeline.elapsed() * 9 / 8);
        self.panels.push(Panel { title: title.into(), recording: timeline.recording() });
    }

    pub(crate) fn is_confirmed(&self) -> bool {
        self.claims.iter().all(|claim| claim.holds)
    }

    pub(crate) fn print(&self) {
        for Claim { text, holds } in &self.claims {
            println!("  {} {text}", if *holds { "confirmed:" } else { "NOT CONFIRMED:" });
        }
    }

    fn chart_name(&self) -> String {
        format!("{}.svg", self.letter.to_lowercase())
    }

    fn section(&self) -> String {
        let mut text = format!("## {}. {}\n\n{}\n\n", self.letter, self.title, self.about);
        writeln!(text, "![{}]({})\n", self.title, self.chart_name()).unwrap();
        text.push_str("| scene | group | on VMs | of each | on the virtual node | waiting | |\n");
        text.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
        for Row { scene, group, vms, counts, remark } in &self.rows {
            let Counts { vms: on_vms, virtual_nodes, waiting, .. } = counts;
            writeln!(text, "| {scene} | {group} | {on_vms} | {vms} | {virtual_nodes} | {waiting} | {remark} |")
                .unwrap();
        }
        text.push_str("\nClaims:\n\n");
        for Claim { text: claim, holds } in &self.claims {
            writeln!(text, "- {claim}: {}", if *holds { "confirmed" } else { "**not confirmed**" }).unwrap();
        }
        text
    }
}

const HEAD: &str = "# Proof

Written by `make prove`: stories on a real etcd, API server, scheduler and controller-manager (Kubernetes 1.36) with fake nodes: three VMs with
room for 24 pods of half a CPU, and a virtual node. *By hand* is what is usually advised, a toleration and a preferred node affinity
in the manifest; *with Spillway* the manifest says nothing of virtual nodes, and webhook and controller run as they are installed. A run in
which a claim does not hold fails, and changes nothing here.

What it does not show: Azure. No container runs, so a pod starts as soon as it is bound.

";

/// Writes a page, and the charts beside it.
pub(crate) fn write(stories: &[Story], target: &Path) {
    let sections: Vec<_> = stories.iter().map(Story::section).collect();
    fs::write(target.join("README.md"), format!("{HEAD}{}", sections.join("\n"))).unwrap();
    for story in stories {
        chart::draw(&target.join(story.chart_name()), &story.panels).unwrap();
    }
}
