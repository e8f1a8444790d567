//! Series of interleaved measurements: compared servers are measured in turns, in short slices, so
//! that other load of the machine affects all equally. A ratio is the median of the ratios within
//! each round.

/// Values of a measurement, one per round.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// Adds the value of a round.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Returns the median.
    pub fn median(&self) -> f64 {
        median(self.0.clone())
    }

    /// Returns the maximum.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Returns the median of the ratios to another series within each round.
    pub fn to(&self, other: &Series) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// Combines two series round by round.
    pub fn with(&self, other: &Series, what: impl Fn(f64, f64) -> f64) -> Series {
        Series(self.0.iter().zip(&other.0).map(|(a, b)| what(*a, *b)).collect())
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
