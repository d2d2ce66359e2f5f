//! Dates as Python's `strftime` writes them.

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
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// `strftime` for the fields that templates use; `now` in seconds since 1970, local time.
pub fn strftime(format: &str, now: i64) -> Result<String, Error> {
    let (days, second) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let month_name = MONTHS[(month - 1) as usize];
    let weekday = WEEKDAYS[(days + 4).rem_euclid(7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut field = chars.next().unwrap_or('%');
        let bare = field == '-';
        if bare {
            field = chars.next().unwrap_or('-');
        }
        let pad = |value: i64| {
            if bare {
                value.to_string()
            } else {
                format!("{value:02}")
            }
        };
        out.push_str(&match field {
            'Y' => year.to_string(),
            'y' => pad(year.rem_euclid(100)),
            'm' => pad(month),
            'd' => pad(day),
            'H' => pad(second / 3600),
            'I' => pad((second / 3600 + 11) % 12 + 1),
            'M' => pad(second / 60 % 60),
            'S' => pad(second % 60),
            'p' => if second < 43_200 { "AM" } else { "PM" }.into(),
            'B' => month_name.into(),
            'b' => month_name[..3].into(),
            'A' => weekday.into(),
            'a' => weekday[..3].into(),
            '%' => "%".into(),
            other => {
                return Err(Error::new(
                    ErrorKind::UnknownFunction, // the reference renderer may know it
                    format!("strftime_now: field %{other} is not supported"),
                ));
            }
        });
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01 (proleptic Gregorian).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468; // from 0000-03-01, so that the leap day ends its year
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (
        year_of_era + era * 400 + i64::from(month <= 2),
        month,
        day_of_year - (153 * shifted_month + 2) / 5 + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(
            strftime("%A %d %B %Y %H:%M:%S", 1_709_251_199).expect("known"),
            "Thursday 29 February 2024 23:59:59"
        );
        assert_eq!(
            strftime("%-d %b %y %I%p", 0).expect("known"),
            "1 Jan 70 12AM"
        );
        assert!(strftime("%U", 0).is_err());
    }
}
