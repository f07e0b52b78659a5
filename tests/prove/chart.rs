//! Draws the number of pods on VMs, on virtual nodes and waiting, over time.

use std::path::Path;

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::timeline::{Counts, Recording};

/// The chart of one group or one scene.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) recording: Recording,
}

type Error = Box<dyn std::error::Error>;

// Readers who cannot distinguish red from green can distinguish these colours.
const VMS: RGBColor = RGBColor(0x2b, 0x6c, 0xb0);
const VIRTUAL: RGBColor = RGBColor(0xed, 0x89, 0x36);
const WAITING: RGBColor = RGBColor(0xa0, 0xae, 0xc0);

/// The name, the colour and the height of a layer.
type Layer = (&'static str, RGBColor, fn(Counts) -> usize);

/// The layers from the back to the front. Each layer covers the layers behind it.
const LAYERS: [Layer; 3] = [
    ("waiting", WAITING, Counts::total),
    ("on the virtual node", VIRTUAL, |counts| counts.vms + counts.virtual_nodes),
    ("on VMs", VMS, |counts| counts.vms),
];

const PANEL: (u32, u32) = (460, 320);
const LEGEND: i32 = 26;

/// Draws the panels side by side, on one scale of pods.
pub(crate) fn draw(file: &Path, panels: &[Panel]) -> Result<(), Error> {
    let count = u32::try_from(panels.len())?;
    let size = (PANEL.0 * count, PANEL.1 + LEGEND.unsigned_abs());
    let root = SVGBackend::new(file, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (legend, body) = root.split_vertically(LEGEND);
    for (place, (name, colour, _)) in (0..).zip(LAYERS.iter().rev()) {
        let left = 48 + place * 150;
        legend.draw(&Rectangle::new([(left, 8), (left + 12, 20)], colour.filled()))?;
        legend.draw(&Text::new(*name, (left + 18, 8), ("sans-serif", 13)))?;
    }
    let all = panels.iter().flat_map(|panel| &panel.recording.samples);
    let most = all.map(|(_, counts)| counts.total()).max().unwrap_or(1);
    for (area, panel) in body.split_evenly((1, panels.len())).iter().zip(panels) {
        draw_panel(area, panel, most)?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    panel: &Panel,
    most: usize,
) -> Result<(), Error> {
    let Panel { title, recording } = panel;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(40)
        .build_cartesian_2d(0.0..recording.end, 0..most + most / 3 + 1)?;
    chart.configure_mesh().disable_x_mesh().light_line_style(TRANSPARENT).x_desc("seconds").y_desc("pods").draw()?;
    for (_, colour, height) in LAYERS {
        chart.draw_series(AreaSeries::new(steps(recording, height), 0, colour.filled()))?;
    }
    for (place, (at, what)) in recording.marks.iter().enumerate() {
        // Labels at the same height would overlap.
        let top = most + most / 3 - place % 3 * (most / 9);
        chart.draw_series(LineSeries::new([(*at, 0), (*at, top)], BLACK.mix(0.5)))?;
        let style = ("sans-serif", 11).into_text_style(area).pos(Pos::new(HPos::Left, VPos::Top));
        chart.draw_series([Text::new(format!(" {what}"), (*at, top), style)])?;
    }
    Ok(())
}

/// Returns a step function: each count applies until the next count.
fn steps(recording: &Recording, height: fn(Counts) -> usize) -> Vec<(f64, usize)> {
    let mut points: Vec<(f64, usize)> = Vec::new();
    for (at, counts) in &recording.samples {
        if let Some((_, before)) = points.last().copied() {
            points.push((*at, before));
        }
        points.push((*at, height(*counts)));
    }
    let last = points.last().map(|(_, height)| (recording.end, *height));
    points.extend(last);
    points
}
