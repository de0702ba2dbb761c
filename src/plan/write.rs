//! Writing a plan: RON that a person can read, with one line per item.

use std::fmt::Write as _;

use ron::ser::PrettyConfig;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Plan;

impl Plan {
    /// SHA-256 in hex over everything but the `digest` field itself.
    pub fn digest_now(&self) -> String {
        let mut text = String::new();
        self.body(&mut text);
        let mut hex = String::new();
        for byte in Sha256::digest(text.as_bytes()) {
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }

    /// Sets [`Plan::digest`] to what the plan now is.
    pub fn seal(&mut self) {
        self.digest = self.digest_now();
    }

    /// The plan as RON text. Equal plans give equal bytes.
    pub fn to_ron(&self) -> String {
        let mut text = String::from(
            "// An execution plan of dualweave. `dualweave show`, `verify` and `simulate` read it; so does a runtime.\n\
             // The types and their meaning are documented in the crate's module `plan`.\n(\n",
        );
        let _ = writeln!(text, "    version: {},", self.version);
        let _ = writeln!(text, "    // Of all that follows.\n    digest: {},", value(&self.digest));
        self.body(&mut text);
        text.push_str(")\n");
        text
    }

    fn body(&self, out: &mut String) {
        field(out, "origin", "What it was compiled from.", &pretty(&self.origin, 1));
        field(out, "model", "What it trains, with number formats.", &pretty(&self.model, 1));
        field(out, "machine", "What it was compiled for: bytes, seconds, nanoseconds.", &pretty(&self.machine, 1));
        field(out, "layout", "", &value(&self.layout));
        let stages = list(&self.stages, |stage| pretty(stage, 1));
        field(out, "stages", "Bytes are those of one GPU; held: of one micro-batch.", &stages);
        field(
            out,
            "pairs",
            "Programs of overlapped pairs: F of one stage beside B of another.",
            &list(&self.pairs, value),
        );
        let programs = list(&self.programs, |program| pretty(program, 2));
        field(out, "programs", "Chunk programs in launch order; waits are events across the two streams.", &programs);
        field(out, "timetable", "Nanoseconds.", &value(&self.timetable));
        field(
            out,
            "ranks",
            "Items in launch order: what to do (stage, micro-batch), which earlier items to wait for, where new blocks lie.",
            &list(&self.ranks, |rank| {
                let rings = list(&rank.rings, value);
                let items = list(&rank.items, value);
                let (arena, exchange) = (rank.arena.0, rank.exchange.0);
                format!(
                    "(\n    arena: {arena},\n    exchange: {exchange},\n    rings: {},\n    items: {},\n)",
                    indent(&rings),
                    indent(&items)
                )
            }),
        );
    }
}

/// One value on one line.
fn value<T: Serialize>(value: &T) -> String {
    // Only maps with non-scalar keys or failing `Serialize` implementations can fail, and plans have neither.
    ron::to_string(value).expect("plan types serialize")
}

/// Nested to `depth`, one line below it.
fn pretty<T: Serialize>(value: &T, depth: usize) -> String {
    let config = PrettyConfig::new().depth_limit(depth).new_line("\n").compact_structs(false);
    ron::ser::to_string_pretty(value, config).expect("plan types serialize")
}

/// A list with one entry after the other, each with its number as a comment.
fn list<T>(entries: &[T], text: impl Fn(&T) -> String) -> String {
    if entries.is_empty() {
        return "[]".to_owned();
    }
    let mut out = String::from("[\n");
    for (number, entry) in entries.iter().enumerate() {
        let entry = text(entry);
        match entry.contains('\n') {
            true => {
                let _ = writeln!(out, "    // {number}\n    {},", indent(&entry));
            }
            false => {
                let _ = writeln!(out, "    {entry}, // {number}");
            }
        }
    }
    out.push(']');
    out
}

fn field(out: &mut String, name: &str, comment: &str, text: &str) {
    if !comment.is_empty() {
        let _ = writeln!(out, "    // {comment}");
    }
    let _ = writeln!(out, "    {name}: {},", indent(text));
}

/// Indents every line but the first.
fn indent(text: &str) -> String {
    text.replace('\n', "\n    ")
}
