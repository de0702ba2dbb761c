//! The one error type: a message, what to do about it, and, where a file is at fault, the place in that file.

use std::fmt;
use std::ops::Range;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode, SourceSpan};

/// Result of anything that can be refused.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was refused and why. Printed by the CLI as a diagnostic; it always means exit code 2.
///
/// Boxed inside, so that a `Result` stays small.
pub struct Error(Box<Inner>);

struct Inner {
    message: String,
    help: Option<String>,
    /// Dotted path of the job field at fault (`training.pp`); the job loader turns it into a place in the file.
    field: Option<String>,
    source: Option<NamedSource<String>>,
    label: Option<(SourceSpan, String)>,
}

impl Error {
    /// An error with only a message: one sentence, no full stop, says what is wrong.
    pub fn new(message: impl Into<String>) -> Self {
        Self(Box::new(Inner { message: message.into(), help: None, field: None, source: None, label: None }))
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Names the job field at fault, as a dotted path (`training.pp`).
    #[must_use]
    pub fn field(mut self, path: impl Into<String>) -> Self {
        self.0.field = Some(path.into());
        self
    }

    /// Points into the text of a file: `span` is in bytes, `label` is written under it. Of lines that no terminal shows only a piece
    /// is kept.
    #[must_use]
    pub fn at(mut self, name: &str, text: &str, span: Range<usize>, label: impl Into<String>) -> Self {
        let (shown, span) = with_short_lines(text, span);
        self.0.source = Some(NamedSource::new(name, shown));
        self.0.label = Some((span.into(), label.into()));
        self
    }

    /// The message alone.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do about it, if the error says so.
    pub fn help_text(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// The job field at fault, if one is named.
    pub fn field_path(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// Whether the error already points into a file.
    pub fn has_place(&self) -> bool {
        self.0.label.is_some()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.message)?;
        if let Some(help) = &self.0.help {
            write!(f, " (help: {help})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl Diagnostic for Error {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (span, text) = self.0.label.as_ref()?;
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(Some(text.clone()), *span))))
    }
}

/// Longest line, in bytes, that is shown as it is. `miette` pads with [`fmt`], which counts no more than 65 535 columns and panics
/// beyond.
const LONGEST_LINE: usize = 1000;
/// Bytes of a longer line that are kept in front of what is pointed to.
const BEFORE: usize = 100;

/// The text with a piece of each line that is too long, around the start of the span where it is in the line; and where the span is
/// then. Lines keep their numbers.
fn with_short_lines(text: &str, span: Range<usize>) -> (String, Range<usize>) {
    if text.split('\n').all(|line| line.len() <= LONGEST_LINE) {
        return (text.to_owned(), span);
    }
    let boundary = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let (mut shown, mut start, mut end) = (String::new(), 0, 0);
    let mut from = 0;
    for line in text.split_inclusive('\n') {
        let content = from + line.strip_suffix('\n').unwrap_or(line).len();
        let mut kept = from..content;
        if kept.len() > LONGEST_LINE {
            if kept.contains(&span.start) {
                kept.start = boundary(span.start.saturating_sub(BEFORE).max(from));
            }
            kept.end = boundary(content.min(kept.start + LONGEST_LINE));
        }
        let moved = |at: usize| shown.len() + at.clamp(kept.start, kept.end) - kept.start;
        if span.start >= from {
            start = moved(span.start);
        }
        if span.end >= from {
            end = moved(span.end);
        }
        shown.push_str(&text[kept]);
        from += line.len();
        if from > content {
            shown.push('\n');
        }
    }
    (shown, start..end)
}

/// A RON reader's error, as a diagnostic that underlines the place in `text`.
pub fn from_ron(name: &str, text: &str, error: &ron::error::SpannedError) -> Error {
    let start = offset(text, error.span.start.line, error.span.start.col);
    let end = offset(text, error.span.end.line, error.span.end.col).max(start);
    // An empty span still gets one character underlined, if there is one.
    let end = if end == start { text[start..].chars().next().map_or(start, |c| start + c.len_utf8()) } else { end };
    Error::new(format!("`{name}` cannot be read: {}", error.code)).at(name, text, start..end, "here")
}

/// Byte offset of a line and column, both from 1; columns count characters.
pub(crate) fn offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let rest = &text[start..];
    start + rest.char_indices().nth(column.saturating_sub(1)).map_or(rest.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is pointed to stays what is pointed to, wherever in a long line it stands; and the error can be shown.
    #[test]
    fn long_lines_are_cut() {
        let long = "é".repeat(40_000);
        let text = format!("first\n{long}here{long}\nlast");
        for wanted in ["first", "here", "last"] {
            let start = text.find(wanted).expect("it is there");
            let span = start..start + wanted.len();
            let (shown, moved) = with_short_lines(&text, span.clone());
            assert_eq!(&shown[moved], wanted);
            assert_eq!(shown.lines().count(), 3);
            assert!(shown.len() < 3 * LONGEST_LINE);
            let error = Error::new("something is wrong").at("file", &text, span, "here");
            assert!(format!("{:?}", miette::Report::new(error)).contains(wanted));
        }
        // Past the piece that is kept, and over several lines.
        assert_eq!(with_short_lines(&text, 6..text.len()).1.start, 6);
        let (shown, all) = with_short_lines(&text, 0..text.len());
        assert_eq!(all, 0..shown.len());
        assert_eq!(with_short_lines("a\nb", 2..3), ("a\nb".to_owned(), 2..3));
    }
}
