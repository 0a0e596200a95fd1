//! Times as Kubernetes writes and reads them, and the ages kubectl prints.

use jiff::Timestamp;

/// RFC 3339 in whole seconds: `metav1.Time`.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 with six decimals: `metav1.MicroTime`.
pub fn micro(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// The two forms of a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Seconds,
    Micros,
}

impl Form {
    /// As Go's parser shows it.
    fn layout(self) -> &'static str {
        match self {
            Self::Seconds => "2006-01-02T15:04:05Z07:00",
            Self::Micros => "2006-01-02T15:04:05.000000Z07:00",
        }
    }
}

/// A `metav1.Time`.
///
/// # Errors
/// The text of Go's parser, which names the part that does not fit.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    GoParser { text, rest: text, form: Form::Seconds }.run()
}

/// A `metav1.MicroTime`: six decimals are required.
///
/// # Errors
/// The text of Go's parser, which names the part that does not fit.
pub fn parse_micro(text: &str) -> Result<Timestamp, String> {
    GoParser { text, rest: text, form: Form::Micros }.run()
}

/// Reads element by element, to fail where and how Go does.
struct GoParser<'a> {
    text: &'a str,
    rest: &'a str,
    form: Form,
}

impl GoParser<'_> {
    fn run(mut self) -> Result<Timestamp, String> {
        let year = self.number(4, "2006")?;
        self.literal("-")?;
        let month = self.number(2, "01")?;
        self.literal("-")?;
        let day = self.number(2, "02")?;
        self.literal("T")?;
        let hour = self.number(2, "15")?;
        self.literal(":")?;
        let minute = self.number(2, "04")?;
        self.literal(":")?;
        let second = self.number(2, "05")?;
        let nanos = self.fraction()?;
        let offset = self.offset()?;
        if !self.rest.is_empty() {
            return Err(format!("parsing time {:?}: extra text: {:?}", self.text, self.rest));
        }
        for (wrong, what) in
            [(month == 0 || month > 12, "month"), (hour > 23, "hour"), (minute > 59, "minute"), (second > 59, "second")]
        {
            if wrong {
                return Err(format!("parsing time {:?}: {what} out of range", self.text));
            }
        }
        let civil = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z");
        let time: Timestamp = civil.parse().map_err(|_| format!("parsing time {:?}: day out of range", self.text))?;
        time.checked_sub(jiff::SignedDuration::from_secs(offset))
            .map_err(|_| format!("parsing time {:?}: year out of range", self.text))
    }

    fn fail<T>(&self, element: &str) -> Result<T, String> {
        let layout = self.form.layout();
        Err(format!("parsing time {:?} as {layout:?}: cannot parse {:?} as {element:?}", self.text, self.rest))
    }

    fn number(&mut self, width: usize, element: &str) -> Result<u32, String> {
        match self.rest.get(..width).filter(|d| d.bytes().all(|b| b.is_ascii_digit())) {
            Some(digits) => {
                self.rest = &self.rest[width..];
                digits.parse().or_else(|_| self.fail(element))
            }
            None => self.fail(element),
        }
    }

    fn literal(&mut self, text: &str) -> Result<(), String> {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => self.fail(text),
        }
    }

    fn fraction(&mut self) -> Result<u32, String> {
        let digits = self.rest.strip_prefix('.').map_or(0, |r| r.bytes().take_while(u8::is_ascii_digit).count());
        if self.form == Form::Micros && digits != 6 {
            return self.fail(".000000");
        }
        if digits == 0 {
            return Ok(0);
        }
        let (text, rest) = self.rest[1..].split_at(digits);
        self.rest = rest;
        format!("{text:0<9}")[..9].parse().or_else(|_| self.fail(".000000"))
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Result<i64, String> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let sign = match self.rest.as_bytes() {
            [b'+', _, _, b':', _, _, ..] => 1,
            [b'-', _, _, b':', _, _, ..] => -1,
            _ => return self.fail("Z07:00"),
        };
        let (hours, minutes) = (self.rest.get(1..3), self.rest.get(4..6));
        match (hours.and_then(|h| h.parse::<i64>().ok()), minutes.and_then(|m| m.parse::<i64>().ok())) {
            (Some(h), Some(m)) => {
                self.rest = &self.rest[6..];
                Ok(sign * (h * 3600 + m * 60))
            }
            _ => self.fail("Z07:00"),
        }
    }
}

/// An age as kubectl's tables print it: two units at most, coarser as it grows.
pub fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |whole: i64, unit: char, part: i64, small: char| match part {
        0 => format!("{whole}{unit}"),
        _ => format!("{whole}{unit}{part}{small}"),
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        let time = parse("2020-01-02T03:04:05.5+01:00").unwrap();
        assert_eq!(rfc3339(time), "2020-01-02T02:04:05Z");
        assert_eq!(micro(parse_micro("2020-01-02T03:04:05.123456Z").unwrap()), "2020-01-02T03:04:05.123456Z");
    }

    #[test]
    fn errors_are_those_of_go() {
        let want = r#"parsing time "today" as "2006-01-02T15:04:05Z07:00": cannot parse "today" as "2006""#;
        assert_eq!(parse("today").unwrap_err(), want);
        let want = r#"parsing time "2020-01-02T03:04:05Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "Z" as ".000000""#;
        assert_eq!(parse_micro("2020-01-02T03:04:05Z").unwrap_err(), want);
        assert!(parse("2020-13-02T03:04:05Z").unwrap_err().contains("month out of range"));
        assert!(parse("2020-02-30T03:04:05Z").unwrap_err().contains("day out of range"));
    }

    #[test]
    fn ages() {
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (155, "2m35s"),
            (700, "11m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (100_000, "27h"),
            (180_000, "2d2h"),
            (900_000, "10d"),
            (70_000_000, "2y80d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(human(seconds), want, "{seconds}");
        }
    }
}
