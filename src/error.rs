//! The one error type: a message, what to do about it, and, where a file is at fault, the place in that file.

use std::fmt;

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

    /// Points into the text of a file: `span` is in bytes, `label` is written under it.
    #[must_use]
    pub fn at(mut self, name: &str, text: &str, span: impl Into<SourceSpan>, label: impl Into<String>) -> Self {
        self.0.source = Some(NamedSource::new(name, text.to_owned()));
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
