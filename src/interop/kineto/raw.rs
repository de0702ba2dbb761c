//! Values of an event, from the way in which they are written.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A time that no trace reaches, either way, in ns: so sums and differences of times fit.
const FAR: i64 = 1 << 60;

/// What is wrong with a value, and how many bytes from its start.
pub(super) struct Fault {
    pub what: String,
    pub at: usize,
}

/// Reads JSON.
pub(super) fn read<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(text).map_err(|error| {
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default().to_owned();
        Fault { what, at: offset(text, &error) }
    })
}

/// The same with 0 for each word that is a number to the profiler and none to JSON, byte for byte; `None` if there is no such word.
pub(super) fn mended(text: &[u8]) -> Option<Vec<u8>> {
    let mut mended = text.to_vec();
    let (mut quoted, mut escaped, mut changed) = (false, false, false);
    let mut at = 0;
    while let Some(&byte) = mended.get(at) {
        match (quoted, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => quoted = !quoted,
            (false, _) => {
                let words = [&b"-Infinity"[..], b"Infinity", b"-inf", b"inf", b"-nan", b"nan", b"NaN"];
                if let Some(word) = words.into_iter().find(|word| mended[at..].starts_with(word)) {
                    mended[at] = b'0';
                    mended[at + 1..at + word.len()].fill(b' ');
                    (at, changed) = (at + word.len() - 1, true);
                }
            }
            (true, _) => {}
        }
        at += 1;
    }
    changed.then_some(mended)
}

/// How many bytes from the start of `text` an error stands.
fn offset(text: &[u8], error: &serde_json::Error) -> usize {
    let lines = text.split_inclusive(|&byte| byte == b'\n');
    let before: usize = lines.take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    (before + error.column().saturating_sub(1)).min(text.len())
}

/// A text, if it is one.
pub(super) fn word(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text = raw.get();
    let inside = text.strip_prefix('"')?.strip_suffix('"')?;
    match inside.contains('\\') {
        false => Some(Cow::Borrowed(inside)),
        true => serde_json::from_str(text).ok().map(Cow::Owned),
    }
}

/// A whole number that is not negative, also in quotes.
pub(super) fn whole(raw: &RawValue) -> Option<u64> {
    raw.get().trim_matches('"').parse().ok()
}

/// Nanoseconds from microseconds, to the last digit: a float could not tell nanoseconds apart in the times that profilers write.
pub(super) fn nanos(raw: &RawValue) -> Option<i64> {
    let text = raw.get().trim_matches('"');
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let exact = || {
        let whole: i64 = whole.parse().ok()?;
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let thousandths: String = part.chars().chain("000".chars()).take(3).collect();
        let rounded = i64::from(part.as_bytes().get(3).is_some_and(|&digit| digit >= b'5'));
        whole.checked_mul(1000)?.checked_add(thousandths.parse::<i64>().ok()? + rounded)
    };
    // What parses as a number could begin with a sign of its own.
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let nanos = match digits.contains(['e', 'E']) {
        true => (digits.parse::<f64>().ok()? * 1e3).round() as i64,
        false => exact()?,
    };
    (nanos <= FAR).then_some(if negative { -nanos } else { nanos })
}
