//! What a bench found: written as Markdown for people, JSON for programs, SVG for the eye.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;
use serde::Serialize;

use crate::host;
use crate::stats::Ratio;

/// One figure, with what it shall be.
#[derive(Debug, Serialize)]
pub struct Row {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    /// Beside what in the same run, and its figure in the same unit.
    pub beside: Option<(String, f64)>,
    /// Ours to theirs, of paired rounds.
    pub ratio: Option<Ratio>,
    pub goal: Option<Goal>,
}

/// Which figure of a row is held against which bound.
#[derive(Debug, Clone, Copy, Serialize)]
pub enum Goal {
    ValueAtMost(f64),
    ValueAtLeast(f64),
    /// The far end of the ratio's interval counts.
    RatioAtMost(f64),
    RatioAtLeast(f64),
}

impl Row {
    pub fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { what: what.into(), value, unit, beside: None, ratio: None, goal: None }
    }

    pub fn beside(mut self, what: impl Into<String>, value: f64, ratio: Ratio) -> Self {
        (self.beside, self.ratio) = (Some((what.into(), value)), Some(ratio));
        self
    }

    pub fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    /// Whether the goal is met; `None` without one.
    pub fn met(&self) -> Option<bool> {
        let ratio = self.ratio;
        Some(match self.goal? {
            Goal::ValueAtMost(bound) => self.value <= bound,
            Goal::ValueAtLeast(bound) => self.value >= bound,
            Goal::RatioAtMost(bound) => ratio?.high <= bound,
            Goal::RatioAtLeast(bound) => ratio?.low >= bound,
        })
    }
}

impl Goal {
    fn text(self, unit: &str) -> String {
        match self {
            Self::ValueAtMost(bound) => format!("≤ {} {unit}", short(bound)),
            Self::ValueAtLeast(bound) => format!("≥ {} {unit}", short(bound)),
            Self::RatioAtMost(bound) => format!("≤ {bound} ×"),
            Self::RatioAtLeast(bound) => format!("≥ {bound} ×"),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub name: &'static str,
    pub date: String,
    pub machine: String,
    pub command: String,
    /// How it was measured, a sentence each.
    pub notes: Vec<String>,
    pub rows: Vec<Row>,
    /// Rounds behind the figures, by name.
    pub samples: Vec<(String, Vec<f64>)>,
}

impl Report {
    pub fn new(name: &'static str) -> Result<Self> {
        let words: Vec<String> = std::env::args().skip(1).collect();
        Ok(Self {
            name,
            date: jiff::Zoned::now().strftime("%Y-%m-%d").to_string(),
            machine: host::describe()?,
            command: format!("cargo xtask bench {}", words.join(" ")),
            notes: Vec::new(),
            rows: Vec::new(),
            samples: Vec::new(),
        })
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds a row and shows it at once.
    pub fn row(&mut self, row: Row) {
        println!("  {}", line(&row));
        self.rows.push(row);
    }

    /// Writes NAME.md, NAME.json and NAME.svg into the folder, and prints the first.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = |ending: &str| folder.join(format!("{}.{ending}", self.name));
        let put = |ending: &str, text: String| {
            let path = path(ending);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        put("md", self.markdown())?;
        put("json", format!("{}\n", serde_json::to_string_pretty(self)?))?;
        put("svg", self.plot()?)?;
        println!("\n{}\nwritten: {}, .json, .svg", self.markdown(), path("md").display());
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}, {}: `{}`\n\n", self.name, self.date, self.machine, self.command);
        for note in &self.notes {
            let _ = writeln!(text, "* {note}");
        }
        text.push_str("\n| what | measured | beside | ratio (95 %) | goal | met |\n|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let _ = writeln!(text, "{}", line(row));
        }
        text
    }

    /// Bars of ours and theirs; one panel per unit, since bars of different units cannot share an axis.
    fn plot(&self) -> Result<String> {
        let mut units: Vec<&'static str> = Vec::new();
        for row in &self.rows {
            if !units.contains(&row.unit) {
                units.push(row.unit);
            }
        }
        let bars = |unit: &str| -> Vec<(String, f64)> {
            let rows = self.rows.iter().filter(|row| row.unit == unit);
            let both = |row: &Row| {
                let beside = row.beside.as_ref().map(|(what, value)| (format!("    {what}"), *value));
                std::iter::once((row.what.clone(), row.value)).chain(beside).collect::<Vec<_>>()
            };
            rows.flat_map(both).collect()
        };
        let panels: Vec<_> = units.iter().map(|unit| (*unit, bars(unit))).collect();
        let heights: Vec<u32> =
            panels.iter().map(|(_, bars)| 70 + 22 * u32::try_from(bars.len()).unwrap_or(0)).collect();
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (900, heights.iter().sum())).into_drawing_area();
            root.fill(&WHITE)?;
            let cuts: Vec<u32> = heights
                .iter()
                .scan(0, |at, height| {
                    *at += height;
                    Some(*at)
                })
                .collect();
            let areas = root.split_by_breakpoints(Vec::<u32>::new(), &cuts[..cuts.len().saturating_sub(1)]);
            for (area, (unit, bars)) in areas.iter().zip(&panels) {
                panel(area, unit, bars)?;
            }
            root.present()?;
        }
        Ok(svg)
    }
}

fn panel<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    unit: &str,
    bars: &[(String, f64)],
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let most = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .caption(unit, ("sans-serif", 16))
        .x_label_area_size(24)
        .build_cartesian_2d(-most..most * 1.15, (bars.len() as f64)..0.0)?;
    for (index, (what, value)) in bars.iter().enumerate() {
        let (top, bottom) = (index as f64 + 0.15, index as f64 + 0.85);
        let colour = if what.starts_with(' ') { RGBColor(170, 170, 170) } else { RGBColor(217, 95, 14) };
        chart.draw_series([Rectangle::new([(0.0, top), (*value, bottom)], colour.filled())])?;
        let place = |x: f64| (x, index as f64 + 0.3);
        chart.draw_series([
            Text::new(what.clone(), place(-most), ("sans-serif", 13)),
            Text::new(short(*value), place(value + most * 0.01), ("sans-serif", 13)),
        ])?;
    }
    Ok(())
}

/// A row of the Markdown table.
fn line(row: &Row) -> String {
    let beside =
        row.beside.as_ref().map_or_else(String::new, |(what, value)| format!("{what}: {} {}", short(*value), row.unit));
    let ratio = row.ratio.map_or_else(String::new, |r| format!("{:.3} ({:.3}–{:.3})", r.mean, r.low, r.high));
    let goal = row.goal.map_or_else(String::new, |goal| goal.text(row.unit));
    let met = match row.met() {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "",
    };
    format!("| {} | {} {} | {beside} | {ratio} | {goal} | {met} |", row.what, short(row.value), row.unit)
}

/// Three figures that matter.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_far_end_of_the_interval_is_held_against_the_goal() {
        let ratio = |high| Ratio { mean: 1.0, low: 0.9, high };
        let row = |high| Row::new("x", 1.0, "µs").beside("y", 1.0, ratio(high)).goal(Goal::RatioAtMost(1.05));
        assert_eq!((row(1.04).met(), row(1.06).met()), (Some(true), Some(false)));
        assert_eq!(Row::new("x", 1.0, "µs").met(), None);
        assert_eq!(Row::new("x", 5.0, "ms").goal(Goal::ValueAtMost(5.0)).met(), Some(true));
    }

    #[test]
    fn a_report_has_a_table_and_a_plot() {
        let mut report = Report {
            name: "test",
            date: "2000-01-01".into(),
            machine: "a machine".into(),
            command: "cargo xtask bench test".into(),
            notes: vec!["how".into()],
            rows: Vec::new(),
            samples: Vec::new(),
        };
        let ratio = Ratio { mean: 0.5, low: 0.4, high: 0.6 };
        report.row(Row::new("ours", 1.0, "ms").beside("theirs", 2.0, ratio).goal(Goal::RatioAtMost(0.9)));
        assert!(
            report.markdown().contains("| ours | 1.00 ms | theirs: 2.00 ms | 0.500 (0.400–0.600) | ≤ 0.9 × | yes |")
        );
        let svg = report.plot().unwrap();
        assert!(svg.contains("<svg") && svg.contains("theirs"));
    }
}
