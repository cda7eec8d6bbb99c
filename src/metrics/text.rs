//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use super::{Family, Kind, Times, bound};

/// The text of a scrape.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// The series of one family, which are told one after the other.
#[derive(Debug)]
pub struct Series<'a> {
    text: &'a mut String,
    family: &'static Family,
}

impl Exposition {
    /// Begins a family. Each is told once.
    pub fn family(&mut self, family: &'static Family) -> Series<'_> {
        let Family {
            name, help, kind, ..
        } = family;
        let text = &mut self.text;
        put(
            text,
            format_args!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str()),
        );
        Series { text, family }
    }

    /// Tells a family that is one series without labels.
    pub fn single(&mut self, family: &'static Family, value: impl Display) {
        self.family(family).add(&[], value);
    }

    /// The text so far.
    pub fn done(self) -> String {
        self.text
    }
}

impl Series<'_> {
    /// Adds a series, with a value for each label.
    pub fn add(&mut self, labels: &[&str], value: impl Display) {
        self.line("", labels, value);
    }

    /// Adds a series whose value is a time.
    pub fn add_time(&mut self, labels: &[&str], time: Duration) {
        self.add(labels, time.as_secs_f64());
    }

    /// Adds a series whose value is a moment.
    pub fn add_moment(&mut self, labels: &[&str], moment: SystemTime) {
        let since = moment.duration_since(SystemTime::UNIX_EPOCH);
        self.add_time(labels, since.unwrap_or_default());
    }

    /// Adds the series of a histogram. All of its buckets begin alike: that is put together once, since most lines of a scrape are
    /// buckets.
    pub fn add_times(&mut self, labels: &[&str], times: &Times) {
        debug_assert_eq!(self.family.kind, Kind::Histogram);
        let start = self.text.len();
        let before = self.begin("_bucket", labels);
        self.text.push(before);
        self.text.push_str("le=\"");
        let front = self.text.split_off(start);
        let mut below = 0;
        for (count, bound) in times.buckets.iter().zip(&*BOUNDS) {
            below += count;
            self.text.push_str(&front);
            self.text.push_str(bound);
            put(self.text, format_args!("\"}} {below}\n"));
        }
        self.line("_sum", labels, seconds(times.sum));
        self.line("_count", labels, below);
    }

    fn line(&mut self, suffix: &str, labels: &[&str], value: impl Display) {
        if self.begin(suffix, labels) == ',' {
            self.text.push('}');
        }
        put(self.text, format_args!(" {value}\n"));
    }

    /// Writes name and labels, and says what is to stand before another one.
    fn begin(&mut self, suffix: &str, labels: &[&str]) -> char {
        let Family {
            name,
            labels: names,
            ..
        } = self.family;
        debug_assert_eq!(names.len(), labels.len(), "{name}");
        let text = &mut *self.text;
        text.push_str(name);
        text.push_str(suffix);
        let mut before = '{';
        for (name, value) in names.iter().zip(labels) {
            text.push(before);
            text.push_str(name);
            text.push_str("=\"");
            escape(text, value);
            text.push('"');
            before = ',';
        }
        before
    }
}

/// The buckets' bounds as they are written.
static BOUNDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let written =
        |index| bound(index).map_or("+Inf".to_owned(), |bound| seconds(bound).to_string());
    (0..Times::default().buckets.len()).map(written).collect()
});

#[expect(clippy::cast_precision_loss, reason = "Prometheus has only floats")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// Names come from clients.
fn escape(text: &mut String, mut value: &str) {
    while let Some(place) = value.find(['\\', '"', '\n']) {
        text.push_str(&value[..place]);
        text.push_str(match value.as_bytes()[place] {
            b'\n' => "\\n",
            b'"' => "\\\"",
            _ => "\\\\",
        });
        value = &value[place + 1..];
    }
    text.push_str(value);
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{BUILD, DRAINING, LOGIN_SECONDS, SharedTimes};

    #[test]
    fn a_family_is_told_as_prometheus_reads_it() {
        let mut text = Exposition::default();
        text.family(&BUILD).add(&["a \"b\" \\ \n"], 1);
        text.single(&DRAINING, 0);
        let text = text.done();
        assert!(text.contains("# TYPE pgweir_build_info gauge\npgweir_build_info{version=\"a \\\"b\\\" \\\\ \\n\"} 1\n"));
        assert!(text.ends_with("\npgweir_draining 0\n"));
    }

    #[test]
    fn the_buckets_of_a_histogram_add_up() {
        let times = SharedTimes::default();
        for millis in [0, 1, 5000, 500_000] {
            times.add(Duration::from_millis(millis));
        }
        let mut text = Exposition::default();
        text.family(&LOGIN_SECONDS).add_times(&[], &times.read());
        let text = text.done();
        for line in [
            "_bucket{le=\"0.000128\"} 1",
            "_bucket{le=\"0.001024\"} 2",
            "_bucket{le=\"4.194304\"} 2",
            "_bucket{le=\"8.388608\"} 3",
            "_bucket{le=\"67.108864\"} 3",
            "_bucket{le=\"+Inf\"} 4",
            "_sum 505.001",
            "_count 4",
        ] {
            assert!(
                text.contains(&format!("\npgweir_login_seconds{line}\n")),
                "{line}\n{text}"
            );
        }
    }
}
