//! The learning rate over a training: it rises along a line, and falls along half a cosine.

use std::f64::consts::PI;

/// What is left of the rate behind its fall: DeepSeek-V3's falls from 2.2e-4 to 2.2e-5 (technical report, section 4.2).
const LEFT: f64 = 0.1;

/// Learning rates by step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The largest.
    pub most: f64,
    /// It is reached at this step; the first is 1.
    pub warm_up: u32,
    /// At this step, behind `warm_up`, a tenth is left, and stays; `None`: it does not fall.
    pub decayed: Option<u32>,
}

impl Rate {
    /// The same for ever.
    pub const fn constant(rate: f64) -> Self {
        Self { most: rate, warm_up: 0, decayed: None }
    }

    /// At a step; the first is 1.
    pub fn at(&self, step: u32) -> f64 {
        if step < self.warm_up {
            return self.most * f64::from(step) / f64::from(self.warm_up);
        }
        let Some(last) = self.decayed else { return self.most };
        let fall = f64::from(last.saturating_sub(self.warm_up).max(1));
        let fallen = (f64::from(step - self.warm_up) / fall).min(1.0);
        self.most * (LEFT + (1.0 - LEFT) * (1.0 + (PI * fallen).cos()) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_and_falls() {
        let rate = Rate { most: 2.0, warm_up: 4, decayed: Some(12) };
        let close = |step: u32, expected: f64| {
            assert!((rate.at(step) - expected).abs() < 1e-12, "{step}: {} is not {expected}", rate.at(step));
        };
        close(1, 0.5);
        close(3, 1.5);
        close(4, 2.0);
        // Half way down, and all the way.
        close(8, 1.1);
        close(12, 0.2);
        close(1000, 0.2);
        assert_eq!(Rate { decayed: None, ..rate }.at(1000).to_bits(), 2f64.to_bits(), "it stays");
        assert_eq!(Rate::constant(0.3).at(1).to_bits(), 0.3f64.to_bits());
        assert!((Rate { most: 2.0, warm_up: 0, decayed: Some(2) }.at(1) - 1.1).abs() < 1e-12, "without a rise");
    }
}
