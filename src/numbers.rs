//! Numbers on the command line and in sentences: parsers, whose errors say in words what would be right, and counts. The job itself
//! checks whether a number makes sense for it.

use std::num::IntErrorKind;
use std::ops::RangeInclusive;

use clap::Command;

/// The range of a count that has no limit of its own.
pub(crate) const AT_LEAST_1: RangeInclusive<u64> = 1..=u64::MAX;
/// The range of a number without limits.
pub(crate) const ANY: RangeInclusive<u64> = 0..=u64::MAX;

/// A parser of whole numbers in this range.
pub(crate) fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<T, String> + Clone {
    let (start, end) = (*range.start(), *range.end().min(&largest::<T>()));
    move |text| {
        let parsed = text.trim().parse::<u64>();
        let is_too_large = matches!(&parsed, Err(error) if *error.kind() == IntErrorKind::PosOverflow);
        let number = parsed.ok().filter(|number| (start..=end).contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match end {
            u64::MAX if !is_too_large => format!("must be a whole number of at least {start}"),
            end => format!("must be a whole number from {start} to {end}"),
        })
    }
}

/// The largest value of `T`, which must be unsigned.
fn largest<T: TryFrom<u64>>() -> u64 {
    let all = [u64::MAX, u32::MAX.into(), u16::MAX.into(), u8::MAX.into()];
    all.into_iter().find(|value| T::try_from(*value).is_ok()).expect("an unsigned type")
}

/// A parser of numbers.
pub(crate) fn real(text: &str) -> Result<f64, String> {
    text.trim().parse().map_err(|_| "must be a number, such as 0.01".to_owned())
}

/// A parser of shares between 0 and 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let number = text.trim().parse::<f64>().ok().filter(|number| *number > 0.0 && *number < 1.0);
    number.ok_or_else(|| "must be a number between 0 and 1, such as 0.1".to_owned())
}

/// A parser of a share that is above 0 and at most 1.
pub(crate) fn share_or_all(text: &str) -> Result<f64, String> {
    let number = text.trim().parse::<f64>().ok().filter(|number| *number > 0.0 && *number <= 1.0);
    number.ok_or_else(|| "must be above 0 and at most 1, such as 0.1".to_owned())
}

/// A parser of sizes in bytes, such as 512M or 4G.
pub(crate) fn bytes(text: &str) -> Result<usize, String> {
    let wrong = || "must be a number of bytes, such as 512M or 4G (K, M, G and T are powers of 1,024)".to_owned();
    let text = text.trim();
    let text = text.strip_suffix("iB").filter(|text| text.ends_with(|c: char| c.is_ascii_alphabetic())).unwrap_or(text);
    let (number, unit) = match text.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&text[..at], unit.to_ascii_uppercase()),
        _ => (text, ' '),
    };
    let power = " KMGT".find(unit).ok_or_else(wrong)?;
    let number: usize = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << (10 * power)).ok_or_else(wrong)
}

/// A parser of rates, such as GFLOP/s.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let number = text.trim().parse::<f64>().ok().filter(|number| (0.1..=1e6).contains(number));
    number.ok_or_else(|| "must be a number from 0.1 to 1e6, such as 100".to_owned())
}

/// The command, with negative numbers as values of options. They are then refused in words, and not as unknown flags.
pub(crate) fn with_negative_ones(command: Command) -> Command {
    command.mut_subcommands(|sub| {
        with_negative_ones(sub).mut_args(|arg| {
            let takes_value = arg.get_action().takes_values();
            if takes_value { arg.allow_negative_numbers(true) } else { arg }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_in_a_sane_range() {
        assert_eq!((rate("0.5"), rate(" 1e3 ")), (Ok(0.5), Ok(1000.0)));
        for text in ["0", "-1", "inf", "nan", "", "1,5", "1e-9", "1e300"] {
            assert_eq!(rate(text), Err("must be a number from 0.1 to 1e6, such as 100".to_owned()), "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [("0", 0), ("100", 100), ("2k", 2048), ("512M", 512 << 20), (" 4GiB ", 4 << 30)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1X", "1GB", "iB", "512iB", "99999999999T", "1µ"] {
            assert!(bytes(text).unwrap_err().contains("such as 512M"), "{text}");
        }
    }

    #[test]
    fn a_number_out_of_range_is_refused_in_words() {
        let of = |range, text| whole::<u16>(range)(text);
        assert_eq!(of(1..=1024, "1024"), Ok(1024));
        for text in ["0", "1025", "-1", "1.5", "x", "", "99999999999999999999"] {
            assert_eq!(of(1..=1024, text), Err("must be a whole number from 1 to 1024".to_owned()), "{text}");
        }
        assert_eq!(of(ANY, "70000"), Err("must be a whole number from 0 to 65535".to_owned()));
        let any = whole::<u64>(AT_LEAST_1);
        for text in ["-1", "0", "", "x", "-18446744073709551616"] {
            assert_eq!(any(text), Err("must be a whole number of at least 1".to_owned()), "{text}");
        }
        for text in ["18446744073709551616", "+18446744073709551616"] {
            assert_eq!(any(text), Err("must be a whole number from 1 to 18446744073709551615".to_owned()), "{text}");
        }
        assert!(real("1e-3") == Ok(0.001) && real("nan").is_ok_and(f64::is_nan) && real("0,1").is_err());
    }
}
