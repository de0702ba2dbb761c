//! Edits of bytes: some blind, some that know what a number, a word or a line is.

use std::ops::Range;

use crate::dice::Dice;

/// Numbers that counts, indices and quantities are not expected to be.
const STRANGE: [&str; 26] = [
    "0",
    "1",
    "2",
    "3",
    "-1",
    "-0.0",
    "+1",
    "1.5",
    "0.000000001",
    "4294967295",
    "4294967296",
    "2147483648",
    "9007199254740992",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "1e300",
    "1e308",
    "1e309",
    "-1e308",
    "5e-324",
    "NaN",
    "inf",
    "-inf",
    "0x10",
];

/// Pieces of text that readers stumble over: wide, combining, invisible, from right to left, line ends of other systems.
const UNICODE: [&str; 14] = [
    "é",
    "漢字",
    "e\u{301}",
    "👩‍👩‍👧",
    "\u{202e}",
    "\u{feff}",
    "\u{2028}",
    "\u{0}",
    "\t",
    "\r",
    "\r\n",
    "\u{200b}",
    "١",
    "\u{1b}[31m",
];

/// What opens something.
const OPENING: [&str; 8] = ["(", "[", "{", "Some(", "{\"a\":", "[[", "/*", "\""];

/// Most repetitions of what opens something.
const DEEP: usize = 20_000;

/// Length of a long word.
const LONG: usize = 50_000;

/// One of `bases` with one to four edits.
pub fn edited(bases: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = bases[dice.below(bases.len())].clone();
    // Of many edits hardly anything survives, so most inputs have one.
    let edits = 1 + dice.below(4) * dice.below(2);
    for _ in 0..edits {
        edit(&mut bytes, &bases[dice.below(bases.len())], dice);
    }
    bytes
}

/// One edit; `other` is a file of the same kind.
fn edit(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    let piece = at..(at + 1 + dice.below(40)).min(bytes.len());
    match dice.below(32) {
        0 => flip(bytes, at, dice),
        1 => drop(bytes.drain(piece)),
        2 => {
            let noise: Vec<u8> = (0..1 + dice.below(8)).map(|_| dice.below(256) as u8).collect();
            insert(bytes, at, &noise);
        }
        3 => {
            let piece = bytes[piece].to_vec();
            insert(bytes, at, &piece.repeat(1 + dice.below(3)));
        }
        4 => {
            // Two files, joined anywhere.
            bytes.truncate(at);
            bytes.extend_from_slice(&other[dice.below(other.len() + 1)..]);
        }
        5 => bytes.truncate(at),
        6 => insert(bytes, at, OPENING[dice.below(OPENING.len())].repeat(1 + dice.below(DEEP)).as_bytes()),
        7 => insert(bytes, at, ["x", "9", "é", " ", "\n"][dice.below(5)].repeat(1 + dice.below(LONG)).as_bytes()),
        8 => insert(bytes, at, UNICODE[dice.below(UNICODE.len())].as_bytes()),
        9 | 10 => {
            // A line removed, or doubled.
            let line = line_at(bytes, at);
            if dice.below(2) == 0 {
                bytes.drain(line);
            } else {
                let text = bytes[line.clone()].to_vec();
                insert(bytes, line.start, &text);
            }
        }
        11 | 12 => {
            // A line of another file, or another line of this one.
            let from = if dice.below(2) == 0 { other.to_vec() } else { bytes.clone() };
            let text = from[line_at(&from, dice.below(from.len() + 1))].to_vec();
            let line = line_at(bytes, at);
            if dice.below(2) == 0 { drop(bytes.splice(line, text)) } else { insert(bytes, line.start, &text) }
        }
        13..=16 => {
            // A word in the place of another.
            let words = runs(other, |byte| byte.is_ascii_alphabetic() || byte == b'_');
            let new = words.get(dice.below(words.len())).map_or(&b""[..], |word| &other[word.clone()]).to_vec();
            replace_one(bytes, |byte| byte.is_ascii_alphabetic() || byte == b'_', dice, |_, _| new.clone());
        }
        _ => replace_one(bytes, |byte| byte.is_ascii_digit() || byte == b'.', dice, strange),
    }
}

/// A number in the place of `number`: strange, or almost the same.
fn strange(number: &[u8], dice: &mut Dice) -> Vec<u8> {
    let value = std::str::from_utf8(number).ok().and_then(|text| text.parse::<u64>().ok());
    match (dice.below(3), value) {
        (0, Some(value)) => {
            let near = [value.wrapping_add(1), value.wrapping_sub(1), value.wrapping_mul(2), value / 2];
            near[dice.below(near.len())].to_string().into_bytes()
        }
        _ => STRANGE[dice.below(STRANGE.len())].into(),
    }
}

fn flip(bytes: &mut [u8], at: usize, dice: &mut Dice) {
    let bit = 1 << dice.below(8);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= bit;
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    bytes.splice(at..at, piece.iter().copied());
}

/// The line around a place, with its end.
fn line_at(bytes: &[u8], at: usize) -> Range<usize> {
    let start = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let end = bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| at + end + 1);
    start..end
}

/// The longest pieces of bytes that belong together.
fn runs(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| belongs(**byte)) {
        match runs.last_mut() {
            Some(last) if last.end == at => last.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

/// Replaces one such piece, if there is any.
fn replace_one(
    bytes: &mut Vec<u8>,
    belongs: impl Fn(u8) -> bool,
    dice: &mut Dice,
    with: impl FnOnce(&[u8], &mut Dice) -> Vec<u8>,
) {
    let mut runs = runs(bytes, belongs);
    if !runs.is_empty() {
        let run = runs.swap_remove(dice.below(runs.len()));
        let new = with(&bytes[run.clone()], dice);
        bytes.splice(run, new);
    }
}
