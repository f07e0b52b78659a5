//! Resource quantities such as `500m` and `1.5Gi`, as Kubernetes reads them.
//!
//! The rules are those of `ParseQuantity` in k8s.io/apimachinery `pkg/api/resource`, down to its oddities (`+` and `k` are
//! zero): what the API server accepts must mean the same here. A test compares the two on thousands of strings.

use std::{fmt, iter, ops::Add};

use bounded_static::ToStatic;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// Nanos in one unit: a core, a byte.
const UNIT: i128 = 1_000_000_000;
/// Nanos in one milli of a unit.
const MILLI: i128 = 1_000_000;

/// An amount of a resource in its own unit, such as cores or bytes, exact to a billionth.
///
/// Amounts with binary suffixes end at 2^63-1 units, as they do in apimachinery. All others are exact up to 2^127-1 nanos, some
/// 10^29 units, and larger ones count as that much; apimachinery has no such limit, and no node has as much of anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, ToStatic)]
pub struct Quantity {
    nanos: i128,
}

/// Why a text is not a quantity. The text itself is not kept: who reads it knows it, and names the field beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToStatic, thiserror::Error)]
pub enum QuantityError {
    /// No number in front.
    #[error("expected a number with or without a suffix, such as 2, 500m or 1.5Gi")]
    Number,
    /// A number, and something behind it that is no suffix.
    #[error("unknown suffix, expected one of n u m k M G T P E, Ki Mi Gi Ti Pi Ei, or an exponent such as e3")]
    Suffix,
    /// Of a JSON type that a quantity cannot have.
    #[error("expected a string or a number")]
    Type,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0 };

    /// So many whole units.
    pub const fn from_units(units: i64) -> Self {
        Self { nanos: units as i128 * UNIT }
    }

    /// So many thousandths of a unit, as CPU is counted.
    pub const fn from_milli(milli: i64) -> Self {
        Self { nanos: milli as i128 * MILLI }
    }

    /// Reads a quantity. Amounts below a nano are rounded away from zero: who asks for something gets something.
    ///
    /// # Errors
    ///
    /// [`QuantityError`] for exactly the texts that `ParseQuantity` refuses. White space is one of them.
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

    /// The amount in whole units, rounded away from zero.
    pub const fn units(self) -> i128 {
        round_away(self.nanos, UNIT)
    }

    /// The amount in whole thousandths of a unit, rounded away from zero.
    pub const fn milli(self) -> i128 {
        round_away(self.nanos, MILLI)
    }

    /// The largest multiple of `step` that is not larger than this; the amount itself if there are no steps (zero or less).
    #[must_use]
    pub const fn floor_to(self, step: Self) -> Self {
        if step.nanos <= 0 {
            return self;
        }
        Self { nanos: self.nanos.saturating_sub(self.nanos.rem_euclid(step.nanos)) }
    }
}

/// Ends at the limits of the type.
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

/// What a number is multiplied with: ten or two to the power of this.
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

    /// Whether `ParseQuantity` takes this suffix without any digit for zero. That is an accident of its fast path: where it
    /// falls back to arbitrary precision, it misses the digits.
    fn alone_is_zero(&self) -> bool {
        match self {
            Self::Decimal(exponent) => *exponent >= -9,
            Self::Binary(exponent) => *exponent <= 40,
        }
    }
}

/// `e3`, `E+3` or `e-3`.
fn decimal_exponent(suffix: &str) -> Option<i32> {
    let exponent: i64 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    // apimachinery reads 64 bits and keeps 32 of them: to it, 1e4294967296 is 1.
    #[allow(clippy::cast_possible_truncation)]
    Some(exponent as i32)
}

/// The number `whole.fraction` × 10^`power` × `factor` in whole nanos, rounded up; nothing if that is beyond 128 bits.
fn magnitude(whole: &str, fraction: &str, power: i32, factor: u128) -> Option<u128> {
    let digits = whole.bytes().chain(fraction.bytes()).map(|digit| u128::from(digit - b'0'));
    let count = whole.len() + fraction.len();
    // As if the number were an integer: this many zeros follow the digits, or this many places stand behind a point.
    let zeros = i64::from(power) + 9 - i64::try_from(fraction.len()).ok()?;
    let places = usize::try_from(-zeros).unwrap_or(0);
    let before = count.saturating_sub(places);

    let mut nanos = digits.clone().take(before).try_fold(0_u128, |n, digit| n.checked_mul(10)?.checked_add(digit))?;
    if nanos > 0 {
        let zeros = u32::try_from(zeros).unwrap_or(0);
        nanos = nanos.checked_mul(10_u128.checked_pow(zeros)?)?.checked_mul(factor)?;
    }
    // The places from the last to the first, each a tenth of the one before. Once a remainder is left, it never goes away
    // again: the sum is above a whole number for good.
    const DIVIDES_TO_ZERO: usize = 40; // more leading places than that change nothing
    let leading = iter::repeat_n(0, (places - (count - before)).min(DIVIDES_TO_ZERO));
    let (tenth, remainder) =
        digits.rev().take(count - before).chain(leading).fold((0, false), |(tenth, left), digit| {
            let sum = digit * factor + tenth;
            (sum / 10, left || !sum.is_multiple_of(10))
        });
    nanos.checked_add(tenth)?.checked_add(u128::from(remainder))
}

/// What stands in a manifest where a quantity belongs.
///
/// A quantity that cannot be read must not make the whole pod unreadable. The API server sends only quantities in their
/// canonical form, as strings. People also write numbers, and mistakes: those are kept as the reason why, for whoever needs
/// the value to deal with. `null` is zero, as Go decodes it; an `Option` around this tells it from an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToStatic)]
pub struct MaybeQuantity(pub Result<Quantity, QuantityError>);

impl<'de> Deserialize<'de> for MaybeQuantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

/// A value that is not a quantity, and not a mistake in one.
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

    /// Reads the shortest text that means this float. That is the text of the document, up to 15 digits of it.
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
    fn signs_points_and_zeros_stand_where_they_may() {
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
    fn what_go_refuses_is_refused() {
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
        // Without a digit and yet zero, by an accident of Go's.
        for text in ["+", "-", ".", "k", "-.m", "Ti", "E", "e3", "e-9"] {
            assert_eq!(nanos(text), Ok(0), "{text}");
        }
    }

    #[test]
    fn whatever_is_below_a_nano_becomes_one() {
        for (text, expected) in [
            ("0.1n", 1),
            ("-0.1n", -1),
            ("1.0000000001", UNIT + 1),
            ("1.0000000000", UNIT),
            ("1e-1000000", 1),
            ("0.0000000001Ki", 103), // 102.4
            ("0.0000000000000000000000000000000000000000001Ei", 1),
            // Exactly 2^60 nanos, and the least bit more.
            ("0.000000001Ei", 1 << 60),
            ("0.0000000010000000000000000000000000000000000000000000000000000000001Ei", (1 << 60) + 1),
        ] {
            assert_eq!(nanos(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn large_amounts_end_at_a_limit() {
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
    fn parts_of_a_unit_count_as_a_whole_one() {
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
    fn a_floor_is_the_next_step_below() {
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
    fn amounts_compare_by_value_whatever_their_suffix() {
        let parse = |text| Quantity::parse(text).unwrap();
        assert_eq!(parse("1Ki"), parse("1024"));
        assert_eq!(parse("0.5"), parse("500m"));
        assert_eq!(parse("1Gi").max(parse("1G")), parse("1073741824"));
        assert_eq!(parse("100m") + parse("0.4"), parse("500m"));
        assert!(parse("-1") < Quantity::ZERO);
    }

    #[test]
    fn a_quantity_is_text_or_number_and_may_be_invalid() {
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
