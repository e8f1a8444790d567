//! Measuring in turns: what is compared is measured in short slices, one after the other and again, so that whatever else
//! the machine does hits all of them alike. A ratio is the median over the rounds of the ratio within each round.

/// What was measured, a value a round.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// One more round's.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The one in the middle.
    pub fn median(&self) -> f64 {
        median(self.0.clone())
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// How many times the other, within a round.
    pub fn to(&self, other: &Series) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// Round by round, of this and another.
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
