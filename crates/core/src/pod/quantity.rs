//! Resource quantities such as `500m` and `1.5Gi`, with the semantics of Kubernetes.
//!
//! The rules are those of `ParseQuantity` in k8s.io/apimachinery `pkg/api/resource`, with its oddities (`+` and `k` are
//! zero). A text that the API server accepts must mean the same here. A test compares both on thousands of strings.

use std::{fmt, iter, ops::Add};

use bounded_static::ToStatic;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// Nanos in one unit, such as a core or a byte.
const UNIT: i128 = 1_000_000_000;
/// Nanos in a thousandth of a unit.
const MILLI: i128 = 1_000_000;

/// Amount of a resource in its own unit, such as cores or bytes, exact to a billionth.
///
/// The maximum is 2^63-1 units for amounts with a binary suffix, as in apimachinery. For other amounts it is 2^127-1
/// nanos, about 10^29 units. Larger amounts count as the maximum. apimachinery has no such limit, but no node has that
/// much of a resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, ToStatic)]
pub struct Quantity {
    nanos: i128,
}

/// Reason why a text is not a quantity. It does not contain the text, because the caller knows the text and its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToStatic, thiserror::Error)]
pub enum QuantityError {
    /// The text does not begin with a number.
    #[error("expected a number with or without a suffix, such as 2, 500m or 1.5Gi")]
    Number,
    /// An unknown suffix follows the number.
    #[error("unknown suffix, expected one of n u m k M G T P E, Ki Mi Gi Ti Pi Ei, or an exponent such as e3")]
    Suffix,
    /// The JSON value is neither a string nor a number.
    #[error("expected a string or a number")]
    Type,
}

impl Quantity {
    /// Zero.
    pub const ZERO: Self = Self { nanos: 0 };

    /// Creates a quantity from whole units.
    pub const fn from_units(units: i64) -> Self {
        Self { nanos: units as i128 * UNIT }
    }

    /// Creates a quantity from thousandths of a unit, as for CPU.
    pub const fn from_milli(milli: i64) -> Self {
        Self { nanos: milli as i128 * MILLI }
    }

    /// Reads a quantity. Amounts below a nano are rounded away from zero, so that no request becomes zero.
    ///
    /// # Errors
    ///
    /// Returns [`QuantityError`] for exactly the texts that `ParseQuantity` refuses. White space is one of them.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Number);
        }
        let (whole, rest) = split_digits(text.strip_prefix(['+', '-']).unwrap_or(text));
        let (fraction, suffix) = rest.strip_prefix('.').map_or(("", rest), split_digits);
        let without_digits = whole.is_empty() && fraction.is_empty();
        let unknown = if without_digits { QuantityError::Number } else { QuantityError::Suffix };
        let scale = Scale::of(suffix).ok_or(unknown)?;
        if without_digits {
            return if scale.alone_is_zero() { Ok(Self::ZERO) } else { Err(QuantityError::Number) };
        }
        let (power, factor, most) = match scale {
            Scale::Decimal(exponent) => (exponent, 1, i128::MAX),
            Scale::Binary(exponent) => (0, 1 << exponent, i128::from(i64::MAX) * UNIT),
        };
        let nanos = magnitude(whole, fraction, power, factor).and_then(|nanos| i128::try_from(nanos).ok());
        let nanos = nanos.unwrap_or(most).min(most);
        Ok(Self { nanos: if text.starts_with('-') { -nanos } else { nanos } })
    }

    /// Returns the amount in whole units, rounded away from zero.
    pub const fn units(self) -> i128 {
        round_away(self.nanos, UNIT)
    }

    /// Returns the amount in whole thousandths of a unit, rounded away from zero.
    pub const fn milli(self) -> i128 {
        round_away(self.nanos, MILLI)
    }

    /// Returns the largest multiple of `step` that is not above the amount. If `step` is zero or less, returns the
    /// amount.
    #[must_use]
    pub const fn floor_to(self, step: Self) -> Self {
        if step.nanos <= 0 {
            return self;
        }
        Self { nanos: self.nanos.saturating_sub(self.nanos.rem_euclid(step.nanos)) }
    }
}

/// Saturates at the limits of the type.
impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos) }
    }
}

const fn round_away(nanos: i128, step: i128) -> i128 {
    nanos / step + (nanos % step).signum()
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// Factor of a number: a power of ten or of two.
enum Scale {
    Decimal(i32),
    Binary(u32),
}

impl Scale {
    fn of(suffix: &str) -> Option<Self> {
        Some(match suffix {
            "" => Self::Decimal(0),
            "n" => Self::Decimal(-9),
            "u" => Self::Decimal(-6),
            "m" => Self::Decimal(-3),
            "k" => Self::Decimal(3),
            "M" => Self::Decimal(6),
            "G" => Self::Decimal(9),
            "T" => Self::Decimal(12),
            "P" => Self::Decimal(15),
            "E" => Self::Decimal(18),
            "Ki" => Self::Binary(10),
            "Mi" => Self::Binary(20),
            "Gi" => Self::Binary(30),
            "Ti" => Self::Binary(40),
            "Pi" => Self::Binary(50),
            "Ei" => Self::Binary(60),
            exponent => Self::Decimal(decimal_exponent(exponent)?),
        })
    }

    /// Returns whether `ParseQuantity` reads this suffix as zero if there are no digits. Its fast path does so by
    /// accident. Its slow path, with arbitrary precision, reports the missing digits.
    fn alone_is_zero(&self) -> bool {
        match self {
            Self::Decimal(exponent) => *exponent >= -9,
            Self::Binary(exponent) => *exponent <= 40,
        }
    }
}

/// Reads `e3`, `E+3` or `e-3`.
fn decimal_exponent(suffix: &str) -> Option<i32> {
    let exponent: i64 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    // apimachinery reads 64 bits and keeps 32 of them, so that 1e4294967296 means 1.
    #[allow(clippy::cast_possible_truncation)]
    Some(exponent as i32)
}

/// Returns `whole.fraction` × 10^`power` × `factor` in whole nanos, rounded up, or `None` above 128 bits.
fn magnitude(whole: &str, fraction: &str, power: i32, factor: u128) -> Option<u128> {
    let digits = whole.bytes().chain(fraction.bytes()).map(|digit| u128::from(digit - b'0'));
    let count = whole.len() + fraction.len();
    // Treats the number as an integer. Either `zeros` zeros follow its digits, or `places` digits are behind the point.
    let zeros = i64::from(power) + 9 - i64::try_from(fraction.len()).ok()?;
    let places = usize::try_from(-zeros).unwrap_or(0);
    let before = count.saturating_sub(places);

    let mut nanos = digits.clone().take(before).try_fold(0_u128, |n, digit| n.checked_mul(10)?.checked_add(digit))?;
    if nanos > 0 {
        let zeros = u32::try_from(zeros).unwrap_or(0);
        nanos = nanos.checked_mul(10_u128.checked_pow(zeros)?)?.checked_mul(factor)?;
    }
    // Goes through the places from last to first, and divides by ten at each place. A remainder never disappears again,
    // because the exact number is then above a whole number.
    const DIVIDES_TO_ZERO: usize = 40; // more leading places than that change nothing
    let leading = iter::repeat_n(0, (places - (count - before)).min(DIVIDES_TO_ZERO));
    let (tenth, remainder) =
        digits.rev().take(count - before).chain(leading).fold((0, false), |(tenth, left), digit| {
            let sum = digit * factor + tenth;
            (sum / 10, left || !sum.is_multiple_of(10))
        });
    nanos.checked_add(tenth)?.checked_add(u128::from(remainder))
}

/// Value of a quantity field in a manifest.
///
/// An invalid quantity must not make the whole pod unreadable. The API server sends only strings in canonical form.
/// People also write numbers, and mistakes. A mistake is kept as an error, for the caller that needs the value. `null`
/// is zero, as Go decodes it. Use an `Option` around this type to distinguish `null` from an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToStatic)]
pub struct MaybeQuantity(pub Result<Quantity, QuantityError>);

impl<'de> Deserialize<'de> for MaybeQuantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

/// Error for a value of a type that a quantity cannot have.
const OTHER: MaybeQuantity = MaybeQuantity(Err(QuantityError::Type));

struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = MaybeQuantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(MaybeQuantity(Quantity::parse(text.trim()))) // as `UnmarshalJSON` of the Go type does
    }

    fn visit_u64<E>(self, units: u64) -> Result<Self::Value, E> {
        Ok(MaybeQuantity(Ok(Quantity { nanos: i128::from(units) * UNIT })))
    }

    fn visit_i64<E>(self, units: i64) -> Result<Self::Value, E> {
        Ok(MaybeQuantity(Ok(Quantity::from_units(units))))
    }

    /// Reads the shortest text for this float. Up to 15 digits, it is the text of the document.
    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(MaybeQuantity(Quantity::parse(&format!("{number:e}"))))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(MaybeQuantity(Ok(Quantity::ZERO)))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(OTHER)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(OTHER)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(OTHER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: Result<i128, QuantityError> = Err(QuantityError::Number);
    const SUFFIX: Result<i128, QuantityError> = Err(QuantityError::Suffix);

    fn nanos(text: &str) -> Result<i128, QuantityError> {
        Quantity::parse(text).map(|quantity| quantity.nanos)
    }

    #[test]
    fn every_suffix_has_its_value() {
        for (text, expected) in [
            ("1n", 1),
            ("1u", 1_000),
            ("1m", MILLI),
            ("1", UNIT),
            ("1k", 1_000 * UNIT),
            ("1M", 1_000_000 * UNIT),
            ("1G", 1_000_000_000 * UNIT),
            ("1T", 1_000_000_000_000 * UNIT),
            ("1P", 1_000_000_000_000_000 * UNIT),
            ("1E", 1_000_000_000_000_000_000 * UNIT),
            ("1Ki", UNIT << 10),
            ("1Mi", UNIT << 20),
            ("1Gi", UNIT << 30),
            ("1Ti", UNIT << 40),
            ("1Pi", UNIT << 50),
            ("1Ei", UNIT << 60),
            ("1E3", 1_000 * UNIT),
            ("1e+3", 1_000 * UNIT),
            ("1e-3", MILLI),
            ("1e4294967299", 1_000 * UNIT),
        ] {
            assert_eq!(nanos(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn signs_points_and_zeros_are_read() {
        for (text, expected) in [
            ("0", 0),
            ("-0", 0),
            ("+1.50", 1_500 * MILLI),
            ("-1.5", -1_500 * MILLI),
            (".5", 500 * MILLI),
            ("5.", 5 * UNIT),
            ("5.k", 5_000 * UNIT),
            ("007", 7 * UNIT),
            ("1.5Gi", (UNIT << 30) * 3 / 2),
            ("-.5Ki", -512 * UNIT),
            ("0.00000000000000000000000000000000000000000000000001e50", UNIT),
        ] {
            assert_eq!(nanos(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn texts_that_go_refuses_are_refused() {
        for (text, expected) in [
            ("", NUMBER),
            ("a", NUMBER),
            ("--1", NUMBER),
            ("Ei", NUMBER),
            ("e-10", NUMBER),
            (" 1", NUMBER),
            ("1 ", SUFFIX),
            ("1K", SUFFIX),
            ("1ki", SUFFIX),
            ("1mi", SUFFIX),
            ("1KiB", SUFFIX),
            ("1.2.3", SUFFIX),
            ("1,5", SUFFIX),
            ("1e", SUFFIX),
            ("1e1.5", SUFFIX),
            ("1e+", SUFFIX),
            ("1e99999999999999999999", SUFFIX),
            ("1k3", SUFFIX),
            ("0x10", SUFFIX),
            ("1\u{a0}", SUFFIX),
        ] {
            assert_eq!(nanos(text), expected, "{text}");
        }
        // Go reads these as zero by accident, although they have no digit.
        for text in ["+", "-", ".", "k", "-.m", "Ti", "E", "e3", "e-9"] {
            assert_eq!(nanos(text), Ok(0), "{text}");
        }
    }

    #[test]
    fn amounts_below_a_nano_are_rounded_away_from_zero() {
        for (text, expected) in [
            ("0.1n", 1),
            ("-0.1n", -1),
            ("1.0000000001", UNIT + 1),
            ("1.0000000000", UNIT),
            ("1e-1000000", 1),
            ("0.0000000001Ki", 103), // 102.4
            ("0.0000000000000000000000000000000000000000001Ei", 1),
            // Exactly 2^60 nanos, and slightly more.
            ("0.000000001Ei", 1 << 60),
            ("0.0000000010000000000000000000000000000000000000000000000000000000001Ei", (1 << 60) + 1),
        ] {
            assert_eq!(nanos(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn large_amounts_saturate() {
        let most_binary = i128::from(i64::MAX) * UNIT;
        for (text, expected) in [
            ("7Ei", 7 * (UNIT << 60)),
            ("8Ei", most_binary),
            ("-8Ei", -most_binary),
            ("999999999999999999999999999999999999999999Ki", most_binary),
            ("9223372036854775808", most_binary + UNIT),
            ("170141183460469231731687303715884105727n", i128::MAX),
            ("170141183460469231731687303715884105728n", i128::MAX),
            ("-1e30", -i128::MAX),
            ("1e2000000000", i128::MAX),
            ("0e2000000000", 0),
        ] {
            assert_eq!(nanos(text), Ok(expected), "{text}");
        }
        let most = Quantity::parse("1e30").unwrap();
        assert_eq!(most + most, most);
    }

    #[test]
    fn parts_of_a_unit_are_rounded_away_from_zero() {
        for (text, milli, units) in [
            ("0", 0, 0),
            ("1n", 1, 1),
            ("1500m", 1_500, 2),
            ("1.0001", 1_001, 2),
            ("2", 2_000, 2),
            ("-1500m", -1_500, -2),
            ("1e29", 10_i128.pow(32), 10_i128.pow(29)),
        ] {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!((quantity.milli(), quantity.units()), (milli, units), "{text}");
        }
    }

    #[test]
    fn floor_to_returns_the_next_multiple_below() {
        let (cpu, memory) = (Quantity::from_milli(10), Quantity::from_units(100_000_000));
        for (text, step, expected) in [
            ("1234m", cpu, "1230m"),
            ("1230m", cpu, "1230m"),
            ("9m", cpu, "0"),
            ("-1m", cpu, "-10m"),
            ("1Gi", memory, "1000M"),
            ("99999999", memory, "0"),
            ("1234m", Quantity::ZERO, "1234m"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().floor_to(step), Quantity::parse(expected).unwrap(), "{text}");
        }
        let least = Quantity { nanos: i128::MIN };
        assert_eq!(least.floor_to(cpu), least);
    }

    #[test]
    fn amounts_compare_by_value_not_by_suffix() {
        let parse = |text| Quantity::parse(text).unwrap();
        assert_eq!(parse("1Ki"), parse("1024"));
        assert_eq!(parse("0.5"), parse("500m"));
        assert_eq!(parse("1Gi").max(parse("1G")), parse("1073741824"));
        assert_eq!(parse("100m") + parse("0.4"), parse("500m"));
        assert!(parse("-1") < Quantity::ZERO);
    }

    #[test]
    fn a_quantity_field_accepts_text_numbers_and_mistakes() {
        for (json, expected) in [
            (r#""500m""#, Quantity::parse("500m")),
            (r#"" 1 ""#, Quantity::parse("1")),
            ("1", Quantity::parse("1")),
            ("-1", Quantity::parse("-1")),
            ("18446744073709551615", Quantity::parse("18446744073709551615")),
            ("0.5", Quantity::parse("500m")),
            ("0.1", Quantity::parse("100m")),
            ("1e3", Quantity::parse("1k")),
            ("1e-12", Quantity::parse("1n")),
            ("null", Ok(Quantity::ZERO)),
            (r#""1 GB""#, Err(QuantityError::Suffix)),
            (r#""""#, Err(QuantityError::Number)),
            ("true", Err(QuantityError::Type)),
            ("[1,[2]]", Err(QuantityError::Type)),
            (r#"{"a":{"b":1}}"#, Err(QuantityError::Type)),
        ] {
            let list = format!("[{json},null]");
            let read: [Option<MaybeQuantity>; 2] = serde_json::from_str(&list).unwrap();
            let expected = (json != "null").then_some(MaybeQuantity(expected));
            assert_eq!(read, [expected, None], "{json}");
        }
        assert_eq!(serde_json::from_str::<MaybeQuantity>("null").unwrap(), MaybeQuantity(Ok(Quantity::ZERO)));
    }
}
