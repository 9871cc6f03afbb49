//! The values of arguments: how each is parsed, and its error.

#[cfg(feature = "serve")]
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use erank_candle::WeightFormat;
use erank_core::PromptFamily;
use erank_core::prompt::instructions;

/// Reads a format of weights. Case does not matter.
pub(super) fn weight_format_parser() -> impl TypedValueParser<Value = WeightFormat> {
    PossibleValuesParser::new(WeightFormat::ALL.iter().map(|format| format.name()))
        .try_map(|name| name.parse::<WeightFormat>())
}

/// Reads the name of a prompt.
pub(super) fn template() -> impl TypedValueParser<Value = PromptFamily> {
    PossibleValuesParser::new(PromptFamily::ALL.map(PromptFamily::name))
        .map(|name| PromptFamily::named(&name).unwrap_or(PromptFamily::Erank))
}

/// Parses the name of a preset into its instruction. The error for an unknown name lists all names.
pub(super) fn task() -> impl TypedValueParser<Value = &'static str> {
    PossibleValuesParser::new(instructions::PRESETS.map(|(name, _)| name))
        .map(|name| instructions::preset(&name).unwrap_or(instructions::GENERIC))
}

/// Parses a weight in `[0, 1]`.
pub(super) fn weight(given: &str) -> Result<f64, String> {
    match given.parse() {
        Ok(weight) if (0.0..=1.0).contains(&weight) => Ok(weight),
        _ => {
            Err("expected a number between 0 (the model alone) and 1 (the first stage alone)"
                .into())
        }
    }
}

/// Parses a number in `[0, 1]`.
pub(super) fn fraction(given: &str) -> Result<f64, String> {
    let number = given.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 to 1".into())
}

/// Parses a number of threads. More threads than processors would only wait for each other.
pub(super) fn threads(given: &str) -> Result<NonZeroUsize, String> {
    let most = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    match given.parse() {
        Ok(threads) if threads <= most => Ok(threads),
        _ => Err(format!("expected a number from 1 to {most}, that of this machine's processors")),
    }
}

/// Parses an address with a port.
#[cfg(feature = "serve")]
pub(super) fn socket_address(given: &str) -> Result<SocketAddr, String> {
    given.parse().map_err(|_| "expected an IP address and a port, such as 127.0.0.1:8080".into())
}

/// Parses a non-negative number of seconds.
pub(super) fn seconds(given: &str) -> Result<Duration, String> {
    let seconds = given.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "expected a number of seconds, such as 2.5".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_at_most_the_processors() {
        assert_eq!(threads("1"), Ok(NonZeroUsize::MIN));
        for given in ["0", "-1", "x", "100000", "18446744073709551616", ""] {
            assert!(threads(given).is_err_and(|error| error.contains("from 1 to ")), "{given}");
        }
    }

    #[test]
    fn weight_and_seconds_reject_invalid_numbers() {
        assert_eq!(weight("0.25"), Ok(0.25));
        assert!(["-0.1", "1.01", "NaN", "x", ""].iter().all(|given| weight(given).is_err()));
        assert_eq!(fraction("0.25"), Ok(0.25));
        assert!(["-0.1", "1.01", "NaN", "x", ""].iter().all(|given| fraction(given).is_err()));
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert!(["-1", "NaN", "1e300", ""].iter().all(|given| seconds(given).is_err()));
    }
}
