//! Dates for chat templates. A date crate would add 4.6 (`time`, 5 crates) or 6.6 (`jiff`, 2 crates)
//! CPU seconds to a first build.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// Weekdays, beginning with that of 1970-01-01.
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Computes the function `strftime_now` of chat templates. It uses UTC, while transformers uses local time.
#[expect(clippy::disallowed_methods, reason = "a date, not a duration")]
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(format, now.as_secs())
}

/// Formats a time as Python's `strftime`, with the directives that chat templates use.
fn strftime(format: &str, unix_seconds: u64) -> Result<String, Error> {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];

    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        text += &match characters.next() {
            Some('Y') => year.to_string(),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let message = format!("strftime_now does not support %{}", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
    }
    Ok(text)
}

/// Converts days since 1970-01-01 to year, month and day in the Gregorian calendar.
///
/// This is `civil_from_days` of Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms".
fn civil_date(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strftime_equals_python() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thursday, Jan 1970"),
            (951_827_696, "2000-02-29 12:34:56 Tuesday, Feb 2000"),
            (4_102_444_799, "2099-12-31 23:59:59 Thursday, Dec 2099"),
        ] {
            let text =
                strftime("%Y-%m-%d %H:%M:%S %A, %b %Y", seconds).expect("supported directives");
            assert_eq!(text, expected);
        }
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }
}
