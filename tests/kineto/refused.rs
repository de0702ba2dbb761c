//! What is no trace, or not all of one.

use std::io::Read as _;

use dualweave::interop::kineto::{Rules, Selection, components, read};

use super::breakdown;
use super::writer::{Kernel, MAIN, Writer};

fn small() -> String {
    let mut writer = Writer::default();
    writer.annotation("attn(F)", MAIN, 0, 10);
    for number in 0..3 {
        let kernel = Kernel { name: "a \\\"b\\\"", stream: 7, start: 10 * number, time: 5, blocks: 8 };
        writer.launched(kernel, MAIN, number);
    }
    writer.finish()
}

/// Wherever a file ends too early, it is said where.
#[test]
fn no_part_of_a_trace_is_a_trace() {
    let text = small();
    let whole = text.trim_end().len();
    for end in 0..whole {
        let error = breakdown(&text.as_bytes()[..end]).expect_err("a part of it");
        assert!(error.message().contains("byte "), "{end}: {error}");
        if end > 10 {
            assert!(error.message().contains("is cut off: it ends at byte"), "{end}: {error}");
        }
        assert!(error.help_text().is_some(), "{end}");
    }
    assert!(breakdown(&text.as_bytes()[..whole]).is_ok());
}

#[test]
fn damaged_packing_is_said() {
    let text = small();
    let mut packed = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(text.as_bytes(), flate2::Compression::default());
    encoder.read_to_end(&mut packed).expect("it is packed");
    for end in [2, 5, packed.len() / 2, packed.len() - 1] {
        let error = breakdown(&packed[..end]).expect_err("a part of it");
        assert!(error.message().contains("its packed data ends early"), "{end}: {error}");
    }
    let middle = packed.len() / 2;
    packed[middle] ^= 0x55;
    let error = breakdown(&packed).expect_err("damaged");
    let said = error.message();
    assert!(
        said.contains("cannot be unpacked") || said.contains("ends early") || said.contains("is no trace"),
        "{said}"
    );
}

#[test]
fn places_are_those_of_the_file() {
    let text = small();
    let at = text.find("\"ph\": \"X\", \"cat\": \"kernel\"").expect("a kernel");
    let broken = text[..at].to_owned() + "\"ph\" \"X\"" + &text[at + 9..];
    let said = breakdown(broken.as_bytes()).expect_err("broken").to_string();
    let place = format!("`trace.json` is no trace: expected `:` at byte {}", at + 5);
    assert_eq!(said, place);
}

#[test]
fn what_is_no_trace_is_refused() {
    for (text, message) in [
        ("", "it is empty; nothing stands at byte 0"),
        (" 7", "neither `{` nor `[` stands at byte 1"),
        ("{}", "it has no `traceEvents`; it ends at byte 2"),
        ("{\"a\": 1}", "it has no `traceEvents`"),
        ("{\"traceEvents\": {}}", "`traceEvents` is no list, at byte 16"),
        ("{traceEvents: []}", "no field's name stands at byte 1"),
        ("[1]", "an event is no object, at byte 1"),
        ("[{}}", "neither `,` nor `]` stands behind an event, at byte 3"),
        ("[{},]", "an event is no object, at byte 4"),
        ("[{}] x", "something stands behind its end, at byte 5"),
        ("[{\"ph\": \"X\", \"ph\": \"X\"}]", "duplicate field `ph`"),
        ("{\"x\": [1,], \"traceEvents\": []}", "expected value at byte 9"),
        ("[]", "has no GPU kernels: 0 events, 0 of them annotations"),
    ] {
        let said = breakdown(text.as_bytes()).expect_err(text).to_string();
        assert!(said.contains(message), "{text}: {said}");
    }
    let said = breakdown(b"[{\"name\": \"\xff\"}]").expect_err("not UTF-8").to_string();
    assert!(said.contains("invalid unicode code point at byte"), "{said}");
}

#[test]
fn what_is_not_there_cannot_be_selected() {
    let text = small().replace("\"tid\": 7", "\"tid\": 7, \"x\": 0");
    let of = |device, steps| {
        let selection = Selection { device, steps };
        read("trace.json", text.as_bytes(), &Rules::default(), selection)
    };
    let said = |device, steps| format!("{:?}", of(device, steps).expect_err("nothing there"));
    assert!(of(Some(0), None).is_ok());
    assert!(said(Some(3), None).contains("has nothing on GPU 3 (help: it has GPUs 0)"));
    assert!(said(None, Some((1, 2))).contains("has no step from 1 to 2 (help: call `step()`"));
    let two = text.replacen("\"device\": 0", "\"device\": 1", 1);
    let error = format!("{:?}", breakdown(two.as_bytes()).expect_err("two GPUs"));
    assert!(error.contains("has kernels of 2 GPUs (help: choose one with --device: 0, 1)"), "{error}");
}

#[test]
fn a_part_of_a_layer_is_no_layer() {
    let found = breakdown(small().as_bytes()).expect("a trace");
    let error = components("trace.json", &found).expect_err("attention alone");
    let missing = "no attn B, no dispatch F, no dispatch B, no mlp F, no mlp B, no combine F, no combine B";
    assert!(error.message().contains(missing), "{error}");
}
