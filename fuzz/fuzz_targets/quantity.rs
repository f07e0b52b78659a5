//! Parsing a quantity never panics, and the value equals the result of unlimited arithmetic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use num_bigint::{BigInt, BigUint};
use serde_json::Value;
use spillway_core::pod::{MaybeQuantity, Quantity};

fuzz_target!(|body: &[u8]| {
    let json_is_sound = serde_json::from_slice::<Value>(body).is_ok();
    let read = serde_json::from_slice::<MaybeQuantity>(body);
    assert!(read.is_ok() || !json_is_sound, "an invalid quantity must not make the pod unreadable");

    let Ok(text) = std::str::from_utf8(body) else { return };
    let Ok(quantity) = Quantity::parse(text) else { return };
    if let Some(nanos) = nanos(text) {
        assert_eq!(quantity, Quantity::parse(&format!("{nanos}n")).expect("an integer"));
    }
    let milli = quantity.milli();
    assert_eq!(quantity.units(), milli / 1000 + (milli % 1000).signum());
    let step = Quantity::from_milli(10);
    let floor = quantity.floor_to(step);
    assert!(floor <= quantity && (quantity < floor + step || quantity == quantity + step));
    assert_eq!(floor.floor_to(step), floor);
});

/// Returns the value of a quantity in nanos. Returns `None` for large exponents, which would take long.
fn nanos(text: &str) -> Option<BigInt> {
    let suffix =
        text.trim_start_matches(['+', '-']).trim_start_matches(['.', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
    let number = text.strip_suffix(suffix)?.trim_start_matches(['+', '-']);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: BigUint = format!("0{whole}{fraction}").parse().ok()?;
    let (power, doublings) = match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "E" => (18, 0),
        exponent if exponent.starts_with(['e', 'E']) && exponent.len() > 1 && !exponent.ends_with('i') => {
            (exponent[1..].parse().ok().filter(|e| (-500..500).contains(e))?, 0)
        }
        other => {
            let thousands = 1 + "kMGTPE".find(other.replacen('K', "k", 1).chars().next()?)? as i32;
            if other.ends_with('i') { (0, 10 * thousands) } else { (3 * thousands, 0) }
        }
    };
    let places = i32::try_from(fraction.len()).ok()? - power - 9;
    let ten = |power: i32| BigUint::from(10_u8).pow(power.try_into().unwrap_or(0));
    let nanos = ((digits << doublings) * ten(-places) + ten(places) - 1_u8) / ten(places);
    let most = BigUint::from(i64::MAX as u64) * 1_000_000_000_u64;
    let nanos = BigInt::from(if doublings > 0 { nanos.min(most) } else { nanos });
    Some(if text.starts_with('-') { -nanos } else { nanos })
}
