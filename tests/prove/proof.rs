//! The results of a scenario: a table, claims, and a chart.

use std::{fmt::Write, fs, path::Path};

use crate::{
    chart::{self, Panel},
    clusters::wait_for_age,
    timeline::{Counts, Timeline},
};

/// A claim of a scenario, and whether the run confirmed the claim.
#[derive(Debug)]
pub(crate) struct Claim {
    text: String,
    holds: bool,
}

/// A row of a scenario's table.
#[derive(Debug)]
struct Row {
    scene: String,
    group: &'static str,
    /// The number of pods on each VM, such as `8/8/8`.
    vms: String,
    counts: Counts,
    remark: String,
}

/// The results of a scenario so far.
#[derive(Debug)]
pub(crate) struct Scenario {
    letter: &'static str,
    title: &'static str,
    /// A description of the scenario.
    about: &'static str,
    rows: Vec<Row>,
    claims: Vec<Claim>,
    panels: Vec<Panel>,
}

impl Scenario {
    pub(crate) fn new(letter: &'static str, title: &'static str, about: &'static str) -> Self {
        Self { letter, title, about, rows: Vec::new(), claims: Vec::new(), panels: Vec::new() }
    }

    /// Adds a row with the present numbers of pods.
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

    /// Adds the timeline to the chart, beside the others. Records for a while longer, to show that the pods stay where they are.
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

`make prove` writes this page. It runs scenarios on a real etcd, API server, scheduler and controller-manager (Kubernetes 1.36) with fake
nodes: a virtual node, and three VMs with room for 24 pods of half a CPU. *By hand* follows the usual advice: a toleration and a preferred
node affinity in the manifest. *With Spillway*, the manifest does not mention virtual nodes, and the webhook and the controller run as
users install them. A run in which a claim does not hold fails, and does not change this page.

The scenarios do not cover Azure. No container runs, so a pod starts as soon as it is bound.

";

/// Writes the page and the charts.
pub(crate) fn write(scenarios: &[Scenario], target: &Path) {
    let sections: Vec<_> = scenarios.iter().map(Scenario::section).collect();
    fs::write(target.join("README.md"), format!("{HEAD}{}", sections.join("\n"))).unwrap();
    for scenario in scenarios {
        chart::draw(&target.join(scenario.chart_name()), &scenario.panels).unwrap();
    }
}
