//! Periods of the calendar, in UTC: which moments are of the same one.

/// Milliseconds of an hour.
const HOUR: u64 = 60 * 60 * 1000;
/// Milliseconds of a day.
const DAY: u64 = 24 * HOUR;

/// A unit of time of which one snapshot is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A week, which begins on Monday.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Period {
    /// What rules call it.
    pub fn adverb(self) -> &'static str {
        match self {
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }

    /// The number of the period that holds this moment, in milliseconds since 1970.
    pub(super) fn of(self, time_ms: u64) -> u64 {
        let days = time_ms / DAY;
        match self {
            Self::Hour => time_ms / HOUR,
            Self::Day => days,
            // 1970 began on a Thursday.
            Self::Week => (days + 3) / 7,
            Self::Month => {
                let (year, month) = month_of(days);
                year * 12 + month
            }
            Self::Year => month_of(days).0,
        }
    }
}

/// Year and month (0 to 11) of a day since 1970. Years are counted from March, so that a leap day is a year's last.
fn month_of(days: u64) -> (u64, u64) {
    /// Days of 400 years.
    const ERA: u64 = 146_097;
    /// From 1 March of the year 0 to 1 January 1970.
    const SHIFT: u64 = 719_468;
    let day = (days + SHIFT) % ERA;
    // A leap day every four years, none in a hundred, and one in four hundred.
    let year = (day - day / 1_460 + day / 36_524 - day / (ERA - 1)) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    // Five months from March on have 153 days, again and again.
    let month = (5 * day_of_year + 2) / 153;
    let year = year + (days + SHIFT) / ERA * 400;
    match month < 10 {
        true => (year, month + 2),
        false => (year + 1, month - 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_leap(year: u64) -> bool {
        (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
    }

    /// Every day of 700 years, counted one by one.
    #[test]
    fn months_and_years_are_those_of_the_calendar() {
        let mut day = 0;
        for year in 1970..2670 {
            let february = if is_leap(year) { 29 } else { 28 };
            for (month, days) in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].iter().enumerate() {
                for _ in 0..*days {
                    assert_eq!(month_of(day), (year, month as u64), "day {day}");
                    day += 1;
                }
            }
        }
    }

    #[test]
    fn periods_change_where_they_should() {
        let monday = 4 * DAY;
        for (period, last, first) in [
            (Period::Hour, HOUR - 1, HOUR),
            (Period::Day, DAY - 1, DAY),
            (Period::Week, monday - 1, monday),
            (Period::Month, 31 * DAY - 1, 31 * DAY),
            (Period::Year, 365 * DAY - 1, 365 * DAY),
        ] {
            assert_eq!(period.of(last), period.of(last - HOUR / 2), "{period:?}");
            assert_eq!(period.of(last) + 1, period.of(first), "{period:?}");
        }
    }
}
