//! When CronJobs run: five fields, or one of the words that begin with `@`, read as the parser that Kubernetes uses reads them.

use std::collections::HashSet;
use std::sync::LazyLock;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// A schedule; times are whole minutes, but for `@every`, whose are whole seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    times: Times,
    /// Named by the schedule itself, which Kubernetes lets nobody write any more.
    zone: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Times {
    /// Seconds from one to the next, from 1.
    Every(i64),
    Matching(Fields),
}

/// Of each field the values that it takes, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fields {
    minutes: Field,
    hours: Field,
    days: Field,
    months: Field,
    weekdays: Field,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// It says `*`: of days and weekdays the other one decides alone.
    any: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| self.bits & (1 << value) != 0)
    }
}

/// The least and the largest value of a field, and names for some of them.
struct Bounds {
    least: u32,
    largest: u32,
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [Bounds; 5] = [
    Bounds { least: 0, largest: 59, names: &[] },
    Bounds { least: 0, largest: 23, names: &[] },
    Bounds { least: 1, largest: 31, names: &[] },
    Bounds { least: 1, largest: 12, names: &MONTHS },
    Bounds { least: 0, largest: 6, names: &DAYS },
];
const WORDS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
/// A schedule that matches nothing within so many years never does.
const YEARS: i16 = 5;

/// The names of zones that Go knows.
pub fn zones() -> &'static HashSet<&'static str> {
    static ZONES: LazyLock<HashSet<&'static str>> =
        LazyLock::new(|| include_str!("../data/timezones.txt").lines().collect());
    &ZONES
}

/// A zone of the IANA database that is part of this program; UTC where nobody names one.
pub fn zone(name: &str) -> Option<TimeZone> {
    if name.is_empty() { Some(TimeZone::UTC) } else { TimeZone::get(name).ok() }
}

impl Schedule {
    /// # Errors
    /// The complaint of the parser that Kubernetes uses.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut text, mut zone) = (text, None);
        if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
            let (named, rest) = text.split_once(' ').unwrap_or((text, ""));
            let named = named.split_once('=').map_or("", |(_, zone)| zone);
            if !named.is_empty() && !zones().contains(named) {
                return Err(format!("provided bad location {named}: unknown time zone {named}"));
            }
            (text, zone) = (rest.trim(), Some(named.to_owned()));
        }
        let times = if text.starts_with('@') { word(text)? } else { Times::Matching(fields(text)?) };
        Ok(Self { times, zone })
    }

    /// The first time after that one; none where there is none for years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.times {
            Times::Every(seconds) => Timestamp::from_second(after.as_second().checked_add(*seconds)?).ok(),
            Times::Matching(fields) => {
                let own = self.zone.as_deref().and_then(self::zone);
                fields.next(after, own.as_ref().unwrap_or(zone))
            }
        }
    }

    /// The last time after the one and not after the other.
    pub fn last(&self, after: Timestamp, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Times::Every(seconds) = self.times {
            let count = (until.as_second() - after.as_second()).div_euclid(seconds);
            let last = after.as_second().checked_add(count.checked_mul(seconds)?)?;
            return Timestamp::from_second(last).ok().filter(|_| count > 0);
        }
        // Most are near; further back only where none is.
        let mut hours = 1;
        loop {
            let from = until.checked_sub(SignedDuration::from_hours(hours)).map_or(after, |from| from.max(after));
            let mut found = None;
            let mut at = self.next(from, zone);
            while let Some(time) = at.filter(|time| *time <= until) {
                found = Some(time);
                at = self.next(time, zone);
            }
            if found.is_some() || from == after {
                return found;
            }
            hours *= 8;
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let minute = after.as_second().div_euclid(60) + 1;
        let mut at = Timestamp::from_second(minute * 60).ok()?.to_zoned(zone.clone());
        let last = at.year() + YEARS;
        while at.year() <= last {
            at = if !self.months.has(at.month()) {
                at.date().first_of_month().checked_add(1.month()).ok()?.to_zoned(zone.clone()).ok()?
            } else if !self.has_day(&at) {
                at.date().tomorrow().ok()?.to_zoned(zone.clone()).ok()?
            } else if !self.hours.has(at.hour()) {
                at.checked_add((60 - i64::from(at.minute())).minutes()).ok()?
            } else if !self.minutes.has(at.minute()) {
                at.checked_add(1.minute()).ok()?
            } else {
                return Some(at.timestamp());
            };
        }
        None
    }

    /// Where both days and weekdays are chosen, either is enough.
    fn has_day(&self, at: &Zoned) -> bool {
        let (day, weekday) = (self.days.has(at.day()), self.weekdays.has(at.weekday().to_sunday_zero_offset()));
        if self.days.any || self.weekdays.any { day && weekday } else { day || weekday }
    }
}

fn fields(text: &str) -> Result<Fields, String> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        let list = fields.join(" ");
        return Err(format!("expected exactly {} fields, found {}: [{list}]", FIELDS.len(), fields.len()));
    }
    let field = |place: usize| field(fields[place], &FIELDS[place]);
    Ok(Fields { minutes: field(0)?, hours: field(1)?, days: field(2)?, months: field(3)?, weekdays: field(4)? })
}

fn word(text: &str) -> Result<Times, String> {
    match text.strip_prefix("@every ") {
        Some(every) => {
            duration(every).map(Times::Every).map_err(|why| format!("failed to parse duration {text}: {why}"))
        }
        None => match WORDS.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => fields(meaning).map(Times::Matching),
            None => Err(format!("unrecognized descriptor: {text}")),
        },
    }
}

/// Seconds, at least one, as Go reads durations.
fn duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let mut rest = text.trim_start_matches(['+', '-']);
    if text.len() - rest.len() > 1 || rest.is_empty() {
        return Err(invalid());
    }
    if rest == "0" {
        return Ok(1);
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number = &rest[..digits];
        if !number.bytes().any(|b| b.is_ascii_digit()) || number.matches('.').count() > 1 {
            return Err(invalid());
        }
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let scale = match &rest[..unit] {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            other => return Err(format!("time: unknown unit {other:?} in duration {text:?}")),
        };
        seconds += number.parse::<f64>().map_err(|_| invalid())? * scale;
        rest = &rest[unit..];
    }
    // Go's durations end at 2^63 nanoseconds.
    if seconds >= i64::MAX as f64 / 1e9 {
        return Err(invalid());
    }
    let seconds = if text.starts_with('-') { 1.0 } else { seconds.max(1.0) };
    #[expect(clippy::cast_possible_truncation, reason = "within the bound above; parts of a second are dropped")]
    Ok(seconds as i64)
}

fn field(text: &str, bounds: &Bounds) -> Result<Field, String> {
    let mut field = Field { bits: 0, any: false };
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (bits, any) = range(part, bounds)?;
        field.bits |= bits;
        field.any |= any;
    }
    Ok(field)
}

fn range(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let (first, mut last);
    let mut any = matches!(ends[0], "*" | "?");
    if any {
        (first, last) = (bounds.least, bounds.largest);
    } else {
        first = value(ends[0], bounds)?;
        last = match ends.as_slice() {
            [_] => first,
            [_, end] => value(end, bounds)?,
            _ => return Err(format!("too many hyphens: {text}")),
        };
    }
    let step = match parts.as_slice() {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            if ends.len() == 1 {
                last = bounds.largest;
            }
            any &= step <= 1;
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    let (least, largest) = (bounds.least, bounds.largest);
    if first < least {
        return Err(format!("beginning of range ({first}) below minimum ({least}): {text}"));
    }
    if last > largest {
        return Err(format!("end of range ({last}) above maximum ({largest}): {text}"));
    }
    if first > last {
        return Err(format!("beginning of range ({first}) beyond end of range ({last}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    Ok(((first..=last).step_by(step).fold(0, |bits, value| bits | 1 << value), any))
}

fn value(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let name = text.to_ascii_lowercase();
    match (bounds.least..).zip(bounds.names).find(|(_, known)| **known == name) {
        Some((value, _)) => Ok(value),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    let fail = |why: &str| Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}"));
    match text.parse::<i64>() {
        Ok(negative) if negative < 0 => Err(format!("negative number ({negative}) not allowed: {text}")),
        Ok(n) => u32::try_from(n).or_else(|_| fail("value out of range")),
        Err(_) => fail("invalid syntax"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_as_upstream_reads_them() {
        for fine in
            ["* * * * *", "*/5 0-6 1,15 jan-MAR sun", "@hourly", "@every 1h30m", "0 0 ? * 1/2", "TZ=UTC 0 0 * * *"]
        {
            assert!(Schedule::parse(fine).is_ok(), "{fine}");
        }
        for (wrong, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* 5-1 * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("@often", "unrecognized descriptor: @often"),
            ("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\""),
            ("TZ=Moon/Sea * * * * *", "provided bad location Moon/Sea: unknown time zone Moon/Sea"),
        ] {
            assert_eq!(Schedule::parse(wrong).unwrap_err(), why, "{wrong}");
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let found = Schedule::parse(schedule).unwrap().next(at(after), &self::zone(zone).unwrap());
        found.map_or("never".into(), |time| time.to_string())
    }

    #[test]
    fn the_next_time_is_the_first_that_matches() {
        for (schedule, after, want) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", "2026-01-01T00:00:59.5Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "2026-01-01T00:50:00Z", "2026-01-01T01:00:00Z"),
            ("5/20 3 * * *", "2026-01-01T03:26:00Z", "2026-01-01T03:45:00Z"),
            ("30 4 1,15 * *", "2026-01-02T00:00:00Z", "2026-01-15T04:30:00Z"),
            ("0 0 13 * fri", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 */2 * fri", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 * * fri", "2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"),
            ("0 0 29 feb *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 30 2 *", "2026-01-01T00:00:00Z", "never"),
            ("@yearly", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("@weekly", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@every 90s", "2026-01-01T00:00:00.7Z", "2026-01-01T00:01:30Z"),
            ("@every 1ms", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
        ] {
            assert_eq!(next(schedule, after, ""), want, "{schedule} after {after}");
        }
    }

    /// Times that a clock skips are skipped; those that it shows twice are two.
    #[test]
    fn zones_have_their_own_hours() {
        let berlin = "Europe/Berlin";
        assert_eq!(next("0 9 * * *", "2026-01-01T00:00:00Z", berlin), "2026-01-01T08:00:00Z");
        assert_eq!(next("0 9 * * *", "2026-07-01T00:00:00Z", berlin), "2026-07-01T07:00:00Z");
        assert_eq!(next("30 2 * * *", "2026-03-28T12:00:00Z", berlin), "2026-03-30T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-24T12:00:00Z", berlin), "2026-10-25T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T00:30:00Z", berlin), "2026-10-25T01:30:00Z");
        assert_eq!(next("TZ=Asia/Tokyo 0 9 * * *", "2026-01-01T12:00:00Z", berlin), "2026-01-02T00:00:00Z");
        assert_eq!(next("0 0 * * *", "2026-01-01T00:00:00Z", "Asia/Kolkata"), "2026-01-01T18:30:00Z");
        let missing: Vec<_> = zones().iter().filter(|name| **name != "Local" && zone(name).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_last_time_is_found_however_long_ago() {
        let last = |schedule: &str, after: &str, until: &str| {
            let found = Schedule::parse(schedule).unwrap().last(at(after), at(until), &TimeZone::UTC);
            found.map_or("none".into(), |time| time.to_string())
        };
        for (schedule, after, until, want) in [
            ("* * * * *", "2025-01-01T00:00:00Z", "2026-01-01T00:00:30Z", "2026-01-01T00:00:00Z"),
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:00:59Z", "none"),
            ("0 0 1 1 *", "2020-06-01T00:00:00Z", "2026-12-01T00:00:00Z", "2026-01-01T00:00:00Z"),
            ("0 0 1 1 *", "2026-01-01T00:00:00Z", "2026-12-01T00:00:00Z", "none"),
            ("0 0 30 2 *", "2020-01-01T00:00:00Z", "2026-12-01T00:00:00Z", "none"),
            ("@every 7s", "2026-01-01T00:00:00Z", "2026-01-01T00:00:20Z", "2026-01-01T00:00:14Z"),
            ("@every 7s", "2026-01-01T00:00:00Z", "2026-01-01T00:00:06Z", "none"),
        ] {
            assert_eq!(last(schedule, after, until), want, "{schedule} from {after} to {until}");
        }
    }
}
