//! Median and spread of what was measured.

use std::time::Duration;

use serde_json::{Value, json};

/// Milliseconds of one thing, in the order that they were measured.
#[derive(Debug, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value below which `share` of the sample lies: 0.5 is the median.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into a short list"
        )]
        let place = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
        sorted.get(place).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "n": self.len(),
            "p50_ms": rounded(self.quantile(0.5)),
            "min_ms": rounded(self.quantile(0.0)),
            "p95_ms": rounded(self.quantile(0.95)),
            "p99_ms": rounded(self.quantile(0.99)),
            "max_ms": rounded(self.quantile(1.0)),
        })
    }

    /// `p50 (min-max)`.
    pub(crate) fn in_words(&self) -> String {
        let (middle, least, most) = (self.quantile(0.5), self.quantile(0.0), self.quantile(1.0));
        format!("{middle:7.1} ms  ({least:.1}-{most:.1})")
    }
}

pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let mut sample = Sample::default();
        for milliseconds in [9, 1, 5, 3, 7] {
            sample.add(Duration::from_millis(milliseconds));
        }
        assert!((sample.quantile(0.5) - 5.0).abs() < 1e-9);
        assert!((sample.quantile(1.0) - 9.0).abs() < 1e-9);
    }
}
