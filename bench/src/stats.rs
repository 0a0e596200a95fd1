//! Quantiles, and ratios of paired rounds with the bound within which the true one lies with 95 %.

use serde::Serialize;

/// The value below which a share of the samples lies.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// Geometric mean of per-round ratios, with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// `ours / theirs`, round by round. The interval is Student's on the logarithms.
pub fn paired(ours: &[f64], theirs: &[f64]) -> Ratio {
    let logs: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| (a / b).ln()).collect();
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let margin = student(count - 1.0) * (variance / count).sqrt();
    Ratio { mean: mean.exp(), low: (mean - margin).exp(), high: (mean + margin).exp() }
}

/// The two-sided 95 % point of Student's distribution, by its expansion around the normal one (3 degrees and up: within
/// a hundredth).
fn student(degrees: f64) -> f64 {
    let d = degrees.max(1.0);
    1.960 + 2.372 / d + 2.822 / d.powi(2) + 2.556 / d.powi(3) + 1.59 / d.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples: Vec<f64> = (0..101).rev().map(f64::from).collect();
        assert_eq!((median(&samples), quantile(&samples, 0.99), quantile(&samples, 1.0)), (50.0, 99.0, 100.0));
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_steady_ratio_has_a_narrow_bound() {
        let theirs: Vec<f64> = (1..=20).map(f64::from).collect();
        let ours: Vec<f64> = theirs.iter().map(|value| value * 1.5).collect();
        let ratio = paired(&ours, &theirs);
        assert!((ratio.mean - 1.5).abs() < 1e-9 && ratio.high - ratio.low < 1e-9, "{ratio:?}");
    }

    #[test]
    fn noise_widens_the_bound() {
        let theirs = [1.0; 20];
        let ours: Vec<f64> = (0..20).map(|round| if round % 2 == 0 { 0.9 } else { 1.1 }).collect();
        let ratio = paired(&ours, &theirs);
        assert!(ratio.low < 0.97 && ratio.high > 1.03, "{ratio:?}");
    }

    #[test]
    fn students_points_are_the_tables() {
        for (degrees, point) in [(5.0, 2.571), (9.0, 2.262), (19.0, 2.093), (60.0, 2.000)] {
            assert!((student(degrees) - point).abs() < 0.01, "{degrees}");
        }
    }
}
