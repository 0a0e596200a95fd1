//! `resource.Quantity`: exact decimal amounts with decimal and binary suffixes, and their canonical text.

use std::cmp::Ordering;

use serde_json::Value;
use thiserror::Error;

/// How an amount was written, which decides how it is written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// An amount, exact to 10⁻⁹.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

const NANO: i128 = 1_000_000_000;

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// An amount as it is written: `100m`, `1Gi`, `1e3`.
    ///
    /// # Errors
    /// Which part of the text is wrong, as upstream tells it; [`QuantityError::Numeric`] also for more than can be
    /// counted.
    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        let unsigned = text.trim_start_matches(['+', '-']);
        if text.len() - unsigned.len() > 1 {
            return Err(QuantityError::Format);
        }
        let digits_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (digits, suffix) = unsigned.split_at(digits_end);
        if digits.is_empty() || digits == "." || digits.matches('.').count() > 1 || !suffix_shape(suffix) {
            return Err(QuantityError::Format);
        }
        let (base, exponent, format) = scale(suffix).ok_or(QuantityError::Suffix)?;
        let nanos = amount(digits, base, exponent).ok_or(QuantityError::Numeric)?;
        Ok(Quantity { nanos: if text.starts_with('-') { -nanos } else { nanos }, format })
    }

    /// As an object has it: text, or a number. What is neither, or cannot be read, is none.
    pub fn of(value: &Value) -> Option<Quantity> {
        match value {
            Value::String(text) => Quantity::parse(text).ok(),
            Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
            _ => None,
        }
    }

    pub fn from_int(value: i64) -> Quantity {
        Quantity { nanos: i128::from(value) * NANO, format: Format::DecimalSi }
    }

    pub fn from_milli(value: i64) -> Quantity {
        Quantity { nanos: i128::from(value) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Whole units, rounded up.
    pub fn value(self) -> i64 {
        ceil(self.nanos, NANO)
    }

    /// Thousandths, rounded up.
    pub fn milli_value(self) -> i64 {
        ceil(self.nanos, NANO / 1000)
    }

    /// How many of a unit it takes to have as much; none where the unit is nothing, or less.
    pub fn in_units_of(self, unit: Quantity) -> Option<i64> {
        (unit.nanos > 0).then(|| ceil(self.nanos, unit.nanos))
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    pub fn is_integer(self) -> bool {
        self.nanos % NANO == 0
    }

    pub fn is_multiple_of(self, unit: Quantity) -> bool {
        unit.nanos != 0 && self.nanos % unit.nanos == 0
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;

    /// The format of the left side is kept unless that side is zero.
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The canonical form: no fraction, the largest suffix that keeps the amount whole.
impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        match self.format {
            Format::BinarySi if !small && self.is_integer() => {
                let (mut number, mut step) = (self.nanos / NANO, 0);
                while number % 1024 == 0 && step < 6 {
                    (number, step) = (number / 1024, step + 1);
                }
                write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step])
            }
            format => {
                let (mut number, mut exponent) = (self.nanos, -9);
                while number % 1000 == 0 && (format == Format::DecimalExponent || exponent < 18) {
                    (number, exponent) = (number / 1000, exponent + 3);
                }
                match format {
                    Format::DecimalExponent if exponent == 0 => write!(f, "{number}"),
                    Format::DecimalExponent => write!(f, "{number}e{exponent}"),
                    _ => write!(f, "{number}{}", decimal_suffix(exponent)),
                }
            }
        }
    }
}

fn decimal_suffix(exponent: i32) -> &'static str {
    match exponent {
        -9 => "n",
        -6 => "u",
        -3 => "m",
        3 => "k",
        6 => "M",
        9 => "G",
        12 => "T",
        15 => "P",
        18 => "E",
        _ => "",
    }
}

/// Letters, then perhaps a signed number.
fn suffix_shape(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    rest.chars().all(|c| c.is_ascii_digit())
}

/// Base, exponent and format of a suffix.
fn scale(suffix: &str) -> Option<(i128, i32, Format)> {
    let decimal = |exponent| Some((10, exponent, Format::DecimalSi));
    let binary = |power| Some((2, power, Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            Some((10, exponent.parse().ok()?, Format::DecimalExponent))
        }
    }
}

/// `digits × base^exponent` in units of 10⁻⁹, rounded up; amounts beyond what an i64 holds are cut there.
fn amount(digits: &str, base: i128, exponent: i32) -> Option<i128> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    let text = format!("{whole}{fraction}");
    let significant = text.trim_start_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    let limit = i128::from(i64::MAX) * NANO;
    let mut number: i128 = significant.get(..36).unwrap_or(significant).parse().ok()?;
    let mut power =
        9 - i32::try_from(fraction.len()).ok()? + i32::try_from(significant.len().saturating_sub(36)).ok()?;
    if base == 2 {
        number = number.checked_mul(1i128.checked_shl(exponent.unsigned_abs())?).unwrap_or(limit);
    } else {
        power += exponent;
    }
    while power > 0 && number < limit {
        (number, power) = (number * 10, power - 1);
    }
    while power < 0 && number > 1 {
        (number, power) = (number.div_euclid(10) + i128::from(number % 10 != 0), power + 1);
    }
    Some(number.min(limit))
}

fn ceil(nanos: i128, unit: i128) -> i64 {
    let whole = nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0);
    i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).unwrap().to_string()
    }

    #[test]
    fn objects_have_amounts_as_texts_and_as_numbers() {
        let of = |value: Value| Quantity::of(&value).map(|amount| amount.milli_value());
        for (value, milli) in [
            (json!("1"), 1000),
            (json!("100m"), 100),
            (json!("0.5"), 500),
            (json!("1Ki"), 1_024_000),
            (json!("2E-1"), 200),
            (json!("1n"), 1),
            (json!(2), 2000),
            (json!(1.5), 1500),
        ] {
            assert_eq!(of(value.clone()), Some(milli), "{value}");
        }
        assert_eq!((of(json!("x")), of(json!(null)), of(json!([]))), (None, None, None));
        let units = |text: &str, unit: &str| Quantity::parse(text).unwrap().in_units_of(Quantity::parse(unit).unwrap());
        assert_eq!((units("1500m", "1"), units("1Gi", "1Mi"), units("1", "0")), (Some(2), Some(1024), None));
    }

    #[test]
    fn canonical_forms() {
        for (given, want) in [
            ("0.5", "500m"),
            ("1500m", "1500m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1000M", "1G"),
            ("5.5Gi", "5632Mi"),
            ("1e3", "1e3"),
            ("100000", "100k"),
            ("1.5Ki", "1536"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("1.1Ki", "1126400m"),
            ("0", "0"),
            ("-1", "-1"),
            ("+2", "2"),
            ("1500M", "1500M"),
            ("0.0000000001", "1n"),
            ("1E", "1E"),
            ("1E2", "100"),
            ("12e-1", "1200e-3"),
        ] {
            assert_eq!(canonical(given), want, "{given}");
        }
    }

    #[test]
    fn refuses_what_is_not_an_amount() {
        for text in ["", "abc", "1 Gi", "--1", "1.2.3", ".", "1Gix"] {
            assert_eq!(Quantity::parse(text).unwrap_err(), QuantityError::Format, "{text}");
        }
        assert_eq!(Quantity::parse("1iK").unwrap_err(), QuantityError::Suffix);
    }

    #[test]
    fn arithmetic_keeps_the_format() {
        let sum = Quantity::ZERO + Quantity::parse("1Gi").unwrap() + Quantity::parse("1024Mi").unwrap();
        assert_eq!(sum.to_string(), "2Gi");
        assert_eq!(Quantity::parse("1.0001").unwrap().milli_value(), 1001);
        assert!(Quantity::parse("500m").unwrap() < Quantity::from_int(1));
    }

    proptest! {
        #[test]
        fn canonical_text_is_a_fixed_point(n in -1_000_000_000i64..1_000_000_000, suffix in "|m|k|M|Ki|Mi|Gi|e2|u") {
            let text = format!("{n}{suffix}");
            let once = canonical(&text);
            prop_assert_eq!(canonical(&once), once.clone());
            prop_assert_eq!(Quantity::parse(&once).unwrap(), Quantity::parse(&text).unwrap());
        }
    }
}
