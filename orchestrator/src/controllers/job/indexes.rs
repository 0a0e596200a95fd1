//! Sets of completion indexes, as a Job's status writes them: `1,3-5,7`.

use std::fmt;

/// Disjoint ranges in order, of which no two touch; both ends are in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i64, i64)>);

impl Indexes {
    /// Those below `end`. What cannot be read is left out: nobody but a controller writes it.
    pub fn parse(text: &str, end: i64) -> Self {
        let mut all = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>())
                && first <= last.min(end - 1)
            {
                all.0.push((first, last.min(end - 1)));
            }
        }
        all.0.sort_unstable();
        all.merge();
        all
    }

    /// Joins what overlaps or touches.
    fn merge(&mut self) {
        let mut joined: Vec<(i64, i64)> = Vec::with_capacity(self.0.len());
        for (first, last) in self.0.drain(..) {
            match joined.last_mut() {
                Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        self.0 = joined;
    }

    pub fn has(&self, index: i64) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= index);
        after > 0 && self.0[after - 1].1 >= index
    }

    pub fn insert(&mut self, index: i64) {
        if self.has(index) {
            return;
        }
        let at = self.0.partition_point(|(first, _)| *first <= index);
        self.0.insert(at, (index, index));
        let from = at.saturating_sub(1);
        let to = (at + 2).min(self.0.len());
        let mut near = Self(self.0[from..to].to_vec());
        near.merge();
        self.0.splice(from..to, near.0);
    }

    pub fn count(&self) -> i64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// How many are in both.
    pub fn count_common(&self, other: &Self) -> i64 {
        let (mut own, mut others) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut count = 0;
        while let (Some(a), Some(b)) = (own.peek(), others.peek()) {
            count += (a.1.min(b.1) - a.0.max(b.0) + 1).max(0);
            let shorter = if a.1 <= b.1 { &mut own } else { &mut others };
            shorter.next();
        }
        count
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_they_were_read() {
        for text in ["", "0", "0,1", "0-2", "1,3-5,7", "0,2,4-9"] {
            assert_eq!(Indexes::parse(text, 10).to_string(), text);
        }
        assert_eq!(Indexes::parse("0-20,x", 10).to_string(), "0-9");
        assert_eq!(Indexes::parse("0,12", 10).to_string(), "0");
    }

    #[test]
    fn ranges_grow_and_join() {
        let mut set = Indexes::default();
        for (index, want) in [(5, "5"), (3, "3,5"), (4, "3-5"), (9, "3-5,9"), (0, "0,3-5,9"), (1, "0,1,3-5,9")] {
            set.insert(index);
            set.insert(index);
            assert_eq!(set.to_string(), want);
        }
        assert_eq!(set.count(), 6);
        assert!(set.has(4) && !set.has(2) && !set.has(10));
        assert_eq!(set.count_common(&Indexes::parse("1-3,9", 10)), 3);
    }
}
