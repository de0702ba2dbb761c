//! What processes say to each other: frames of a length (4 bytes, little-endian), a kind (1 byte), and as many bytes as the length says.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// What a connection begins with, so that a stranger is told from a process of another version, and both from one of ours.
pub const MAGIC: &[u8; 16] = b"dualweave-run-1\n";

/// No frame is longer: what processes tell each other is small, but for traces.
const LONGEST: usize = 1 << 28;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Who a process is; the first thing that it says.
    Hello(Hello),
    /// All have come: who they are, by number.
    Welcome(Vec<Who>),
    /// The process is alive.
    Beat,
    /// A process has failed.
    Failed(Failed),
    /// For a gathering: its number, and what the process brings.
    Gather(u64, Vec<u8>),
    /// From process 0 to all: the number of the broadcast, and what is told.
    Give(u64, Vec<u8>),
    /// The process is done.
    Bye,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// What it does.
    pub name: String,
    /// Where it runs.
    pub host: String,
    /// As the system counts.
    pub pid: u32,
}

/// What a process says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its number.
    pub process: u32,
    /// How many it thinks there are.
    pub processes: u32,
    /// Who it is.
    pub who: Who,
    /// What all must agree on: names and values.
    pub terms: Vec<(String, String)>,
}

/// That a process has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Whole: names the process.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Frame {
    /// Writes it at once.
    ///
    /// # Errors
    /// If the other end is gone, takes nothing in time, or the frame is too long.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let (kind, body) = match self {
            Self::Hello(hello) => (0, serde_json::to_vec(hello)?),
            Self::Welcome(all) => (1, serde_json::to_vec(all)?),
            Self::Beat => (2, Vec::new()),
            Self::Failed(failed) => (3, serde_json::to_vec(failed)?),
            Self::Gather(number, bytes) => (4, numbered(*number, bytes)),
            Self::Give(number, bytes) => (5, numbered(*number, bytes)),
            Self::Bye => (6, Vec::new()),
        };
        if body.len() > LONGEST {
            return Err(io::Error::other(format!("a message of {} bytes is too long", body.len())));
        }
        let mut frame = Vec::with_capacity(body.len() + 5);
        frame.extend((body.len() as u32).to_le_bytes());
        frame.push(kind);
        frame.extend(body);
        out.write_all(&frame)?;
        out.flush()
    }

    /// Reads one; waits for it.
    ///
    /// # Errors
    /// If the other end is gone, or says what is no frame.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 5];
        from.read_exact(&mut head)?;
        let [a, b, c, d, kind] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let strange = || io::Error::new(io::ErrorKind::InvalidData, "it says what is no message");
        if length > LONGEST {
            return Err(strange());
        }
        // Not all at once: a stranger's length is not to be believed.
        let mut body = Vec::new();
        from.take(length as u64).read_to_end(&mut body)?;
        if body.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let number = |body: &[u8]| {
            let (number, bytes) = body.split_first_chunk::<8>().ok_or_else(strange)?;
            Ok::<_, io::Error>((u64::from_le_bytes(*number), bytes.to_vec()))
        };
        Ok(match kind {
            0 => Self::Hello(serde_json::from_slice(&body)?),
            1 => Self::Welcome(serde_json::from_slice(&body)?),
            2 => Self::Beat,
            3 => Self::Failed(serde_json::from_slice(&body)?),
            4 => number(&body).map(|(number, bytes)| Self::Gather(number, bytes))?,
            5 => number(&body).map(|(number, bytes)| Self::Give(number, bytes))?,
            6 => Self::Bye,
            _ => return Err(strange()),
        })
    }
}

fn numbered(number: u64, bytes: &[u8]) -> Vec<u8> {
    [&number.to_le_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let who = Who { name: "rank 1".to_owned(), host: "a".to_owned(), pid: 7 };
        let hello =
            Hello { process: 1, processes: 2, who: who.clone(), terms: vec![("seed".to_owned(), "0".to_owned())] };
        let failed = Failed { message: "no memory".to_owned(), help: None };
        let frames = [
            Frame::Hello(hello),
            Frame::Welcome(vec![who]),
            Frame::Beat,
            Frame::Failed(failed),
            Frame::Gather(1 << 40, vec![1, 2, 3]),
            Frame::Give(0, Vec::new()),
            Frame::Bye,
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes).expect("room"));
        let mut rest = bytes.as_slice();
        for frame in &frames {
            assert_eq!(Frame::read(&mut rest).expect("a frame"), *frame);
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let strange: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"",
            &[1, 0, 0, 0],
            &[0, 0, 0, 0, 99],
            &[3, 0, 0, 0, 4, 1, 2, 3],
            &[9, 0, 0, 0, 6],
        ];
        for bytes in strange {
            assert!(Frame::read(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
    }
}
