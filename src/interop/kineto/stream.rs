//! JSON that is larger than memory: one value at a time, each with its place in the file.
//!
//! Here values are only cut apart, by brackets and quotes; whoever takes one reads it strictly. What is compressed is unpacked on
//! the way; places are then counted in what was unpacked.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};

/// Bytes that are asked for at a time.
const PIECE: usize = 1 << 18;
/// No event, and no other value that is looked at as a whole, is larger.
const LARGEST_VALUE: usize = 1 << 26;
/// What a gzip file begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// What some editors put in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A file of JSON, as far as it has been read.
pub(super) struct Stream<'a> {
    name: &'a str,
    inner: Box<dyn Read + 'a>,
    packed: bool,
    /// What was read and is not yet done with.
    buffer: Vec<u8>,
    /// Where in the buffer to go on.
    at: usize,
    /// Where in the file the buffer begins.
    base: u64,
    ended: bool,
}

/// A value as it stands in the file.
pub(super) struct Value<'a> {
    /// All of it, without space around it.
    pub text: &'a [u8],
    /// Byte at which it begins.
    pub place: u64,
}

impl<'a> Stream<'a> {
    /// Over a file, packed or not. `name` is for messages.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn new(name: &'a str, file: impl Read + 'a) -> Result<Self> {
        let mut file = BufReader::with_capacity(PIECE, file);
        let start = file.fill_buf().map_err(|error| unreadable(name, &error))?;
        let packed = start.starts_with(&GZIP);
        let inner: Box<dyn Read + 'a> = if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        let mut stream = Self { name, inner, packed, buffer: Vec::new(), at: 0, base: 0, ended: false };
        while stream.buffer.len() < BYTE_ORDER_MARK.len() && !stream.ended {
            stream.fill()?;
        }
        if stream.buffer.starts_with(BYTE_ORDER_MARK) {
            stream.at = BYTE_ORDER_MARK.len();
        }
        Ok(stream)
    }

    /// The next byte that is no space; it is not taken. `None` at the end of the file.
    pub fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let rest = &self.buffer[self.at..];
            match rest.iter().position(|byte| !byte.is_ascii_whitespace()) {
                Some(spaces) => {
                    self.at += spaces;
                    return Ok(Some(self.buffer[self.at]));
                }
                None => self.at = self.buffer.len(),
            }
            if self.ended {
                return Ok(None);
            }
            self.fill()?;
        }
    }

    /// Takes the next byte that is no space if it is `wanted`.
    pub fn take(&mut self, wanted: u8) -> Result<bool> {
        let there = self.peek()? == Some(wanted);
        self.at += usize::from(there);
        Ok(there)
    }

    /// Takes the next value.
    pub fn value(&mut self) -> Result<Value<'_>> {
        if self.peek()?.is_none() {
            return Err(self.short(self.place()));
        }
        let place = self.place();
        let mut end = Scan::default();
        let mut seen = 0;
        let length = loop {
            if let Some(length) = end.find(&self.buffer[self.at..], seen) {
                break length;
            }
            seen = self.buffer.len() - self.at;
            if seen > LARGEST_VALUE {
                let message = format!("`{}` has one value of more than {LARGEST_VALUE} bytes", self.name);
                return Err(Error::new(message).help(format!("it begins at {}", self.place_text(place))));
            }
            if self.ended {
                // A number may be the last thing in a file.
                match end.is_scalar() {
                    true => break seen,
                    false => return Err(self.short(place)),
                }
            }
            self.fill()?;
        };
        let start = self.at;
        self.at += length;
        Ok(Value { text: &self.buffer[start..self.at], place })
    }

    /// Byte of the file that comes next.
    pub fn place(&self) -> u64 {
        self.base + self.at as u64
    }

    /// That something else than was expected stands at a place.
    pub fn broken(&self, place: u64, what: &str) -> Error {
        Error::new(format!("`{}` is no trace: {what} at {}", self.name, self.place_text(place)))
            .help("a trace is what `torch.profiler` writes with `export_chrome_trace`, packed by gzip or not")
    }

    /// That the file ends too early, in what begins at `place`.
    pub fn short(&self, place: u64) -> Error {
        let end = self.base + self.buffer.len() as u64;
        Error::new(format!(
            "`{}` is cut off: it ends at {}, within what begins at byte {place}",
            self.name,
            self.place_text(end)
        ))
        .help("the profiler may have been killed while it wrote, or a copy has stopped: give the whole file")
    }

    fn place_text(&self, place: u64) -> String {
        match self.packed {
            true => format!("byte {place} of what is packed in it"),
            false => format!("byte {place}"),
        }
    }

    /// Reads on. What was done with makes room.
    fn fill(&mut self) -> Result<()> {
        self.buffer.drain(..self.at);
        self.base += self.at as u64;
        self.at = 0;
        let before = self.buffer.len();
        // Long values take fewer, larger pieces.
        let piece = PIECE.max(before);
        let read = (&mut self.inner).take(piece as u64).read_to_end(&mut self.buffer);
        if let Err(error) = read {
            let end = self.place_text(self.base + self.buffer.len() as u64);
            return Err(match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Error::new(format!("`{}` is cut off: its packed data ends early, at {end}", self.name))
                        .help("a copy may have stopped: give the whole file")
                }
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData if self.packed => {
                    Error::new(format!("`{}` cannot be unpacked: {error}, at {end}", self.name))
                        .help("it begins as a gzip file does, but is damaged")
                }
                _ => unreadable(self.name, &error),
            });
        }
        self.ended = self.buffer.len() == before;
        Ok(())
    }
}

fn unreadable(name: &str, error: &io::Error) -> Error {
    Error::new(format!("`{name}` cannot be read: {error}"))
}

/// Where a value ends.
#[derive(Default)]
struct Scan {
    /// Brackets that are open.
    depth: usize,
    quoted: bool,
    /// The byte before was a backslash in quotes.
    escaped: bool,
    /// It is neither in brackets nor in quotes.
    scalar: bool,
}

impl Scan {
    /// The length of the value that `bytes` begin with, of which `seen` bytes were looked at before; `None` if its end is not there.
    fn find(&mut self, bytes: &[u8], seen: usize) -> Option<usize> {
        for (at, &byte) in bytes.iter().enumerate().skip(seen) {
            if self.escaped {
                self.escaped = false;
                continue;
            }
            if self.quoted {
                match byte {
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.quoted = false;
                        if self.depth == 0 {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b',' | b':' | b']' | b'}' | b'[' | b'{' | b'"' if self.scalar => return Some(at),
                _ if self.scalar && byte.is_ascii_whitespace() => return Some(at),
                _ if self.scalar => {}
                b'"' => self.quoted = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    // A bracket that closes nothing is a value of its own, which nobody takes.
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                // What stands in front of everything else: a number, a word, or nothing that is JSON.
                _ if self.depth == 0 => self.scalar = true,
                _ => {}
            }
        }
        None
    }

    fn is_scalar(&self) -> bool {
        self.scalar
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match (self.0.split_first(), buffer.first_mut()) {
                (Some((&byte, rest)), Some(to)) => {
                    (*to, self.0) = (byte, rest);
                    Ok(1)
                }
                _ => Ok(0),
            }
        }
    }

    fn values(text: &str, slow: bool) -> Vec<(String, u64)> {
        let file: Box<dyn Read> = if slow { Box::new(Slow(text.as_bytes())) } else { Box::new(text.as_bytes()) };
        let mut stream = Stream::new("file", file).expect("a file");
        let mut found = Vec::new();
        while stream.peek().expect("it is read").is_some() {
            let value = stream.value().expect("a value");
            found.push((String::from_utf8(value.text.to_vec()).expect("text"), value.place));
        }
        found
    }

    #[test]
    fn values_are_cut_apart() {
        let text = "\u{feff} {\"a\": [1, \"}\\\"]\"]}\n\"x\\\\\" -1.5e3 true[[]]null";
        let wanted = ["{\"a\": [1, \"}\\\"]\"]}", "\"x\\\\\"", "-1.5e3", "true", "[[]]", "null"];
        let wanted: Vec<_> =
            wanted.iter().map(|value| ((*value).to_owned(), text.find(value).expect("there") as u64)).collect();
        assert_eq!(values(text, false), wanted);
        assert_eq!(values(text, true), wanted);
    }

    #[test]
    fn what_is_cut_off_is_said_to_be() {
        for text in ["{\"a\": [1", "\"a", "[\"\\"] {
            let mut stream = Stream::new("file", text.as_bytes()).expect("a file");
            let error = stream.value().err().expect("no end");
            assert!(error.message().contains(&format!("it ends at byte {}", text.len())), "{error}");
        }
    }
}
