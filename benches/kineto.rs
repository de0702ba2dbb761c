//! How long a large trace takes to import, and how much memory.
//!
//! `cargo bench --bench kineto -- EVENTS` makes a trace of about so many events (default a million) in the form that PyTorch's
//! profiler writes, plain and packed, imports both and prints the seconds, and the peak of the process's memory where the system
//! tells it. The mix of events is that of eager training: to each kernel belong its launch, two arrows and four operators.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::Path;
use std::time::Instant;

use dualweave::interop::kineto::{Rules, Selection, read};

/// Names as long as real ones.
const NAMES: [&str; 4] = [
    "void at::native::vectorized_elementwise_kernel<8, at::native::BinaryFunctor<c10::BFloat16, c10::BFloat16, c10::BFloat16, \
     at::native::binary_internal::MulFunctor<float> >, std::array<char*, 3ul> >(int, at::native::BinaryFunctor<c10::BFloat16, \
     c10::BFloat16, c10::BFloat16, at::native::binary_internal::MulFunctor<float> >, std::array<char*, 3ul>)",
    "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_NNT",
    "void deep_ep::internode::dispatch<false, 8, false, 512, 7>(int4*, float*, long*, float*)",
    "void cudnn::fusion::compute_dot_do_o_specialized<true, 64>(void const*, void const*, float*)",
];

const OPERATORS: [&str; 4] = ["aten::linear", "aten::mm", "aten::to", "aten::_to_copy"];

/// Kernels of an annotation.
const KERNELS: u64 = 40;

const ANNOTATIONS: [&str; 10] = [
    "combine(B)",
    "attn(F)",
    "mlp(B)",
    "dispatch(F)",
    "dispatch(B)",
    "mlp(W)",
    "mlp(F)",
    "attn(B)",
    "attn(W)",
    "combine(F)",
];

fn write(out: &mut dyn Write, events: u64) -> io::Result<u64> {
    write!(
        out,
        "\n  {{\n    \"schemaVersion\": 1,\n    \"deviceProperties\": [\n    {{ \"id\": 0, \"name\": \"NVIDIA H800\", \"numSms\": 132 \
         }}\n    ],\n  \"displayTimeUnit\": \"ms\",\n  \"traceEvents\": ["
    )?;
    let (mut written, mut kernel, mut annotation) = (0, 0_u64, 0);
    let base = 5_232_568_470_000_000_u64;
    while written + 8 * KERNELS < events {
        let name = ANNOTATIONS[annotation as usize % ANNOTATIONS.len()];
        let start = base + annotation * 1_000_000;
        let comma = if written == 0 { "" } else { "," };
        write!(
            out,
            "{comma}\n  {{\n    \"ph\": \"X\", \"cat\": \"user_annotation\", \"name\": \"{name}\", \"pid\": 438, \"tid\": 438,\n    \"ts\": \
             {}.{:03}, \"dur\": 900.000,\n    \"args\": {{\n      \"External id\": {annotation},\"Record function id\": 0, \"Ev Idx\": \
             {annotation}\n    }}\n  }}",
            start / 1000,
            start % 1000
        )?;
        written += 1;
        let stream = if name.starts_with(['d', 'c']) { 27 } else { 7 };
        for number in 0..KERNELS {
            let at = start + 20_000 * number;
            let (us, ns) = (at / 1000, at % 1000);
            for (depth, operator) in (0..).zip(OPERATORS) {
                write!(
                    out,
                    ",\n  {{\n    \"ph\": \"X\", \"cat\": \"cpu_op\", \"name\": \"{operator}\", \"pid\": 438, \"tid\": 438,\n    \"ts\": \
                     {us}.{:03}, \"dur\": {}.250,\n    \"args\": {{\n      \"External id\": {kernel},\"Record function id\": 0, \
                     \"Sequence number\": {kernel}, \"Fwd thread id\": 0, \"Ev Idx\": {}\n    }}\n  }}",
                    ns + depth,
                    15 - depth,
                    4 * kernel + depth
                )?;
            }
            write!(
                out,
                ",\n  {{\n    \"ph\": \"X\", \"cat\": \"cuda_runtime\", \"name\": \"cudaLaunchKernel\", \"pid\": 438, \"tid\": 438,\n    \
                 \"ts\": {us}.{:03}, \"dur\": 4.125,\n    \"args\": {{\n      \"External id\": {kernel},      \"cbid\": 211, \
                 \"correlation\": {kernel}\n    }}\n  }},\n  {{\n    \"ph\": \"s\", \"id\": {kernel}, \"pid\": 438, \"tid\": 438, \"ts\": \
                 {us}.{:03},\n    \"cat\": \"ac2g\", \"name\": \"ac2g\"\n  }},\n  {{\n    \"ph\": \"X\", \"cat\": \"kernel\", \"name\": \
                 \"{}\", \"pid\": 0, \"tid\": {stream},\n    \"ts\": {}.{ns:03}, \"dur\": 18.016,\n    \"args\": {{\n      \"External \
                 id\": {kernel},      \"queued\": 0, \"device\": 0, \"context\": 1,      \"stream\": {stream}, \"correlation\": \
                 {kernel},      \"registers per thread\": 27,      \"shared memory\": 24,      \"blocks per SM\": 3.878788,      \
                 \"warps per SM\": 15.515152,      \"grid\": [{}, 1, 1],      \"block\": [32, 4, 1],      \"est. achieved occupancy %\": \
                 24\n    }}\n  }},\n  {{\n    \"ph\": \"f\", \"id\": {kernel}, \"pid\": 0, \"tid\": {stream}, \"ts\": {}.{ns:03},\n    \
                 \"cat\": \"ac2g\", \"name\": \"ac2g\", \"bp\": \"e\"\n  }}",
                ns + 5,
                ns + 5,
                NAMES[kernel as usize % NAMES.len()],
                us + 700,
                16 + kernel % 512,
                us + 700,
            )?;
            kernel += 1;
            written += 8;
        }
        annotation += 1;
    }
    out.write_all(b"\n  ],\n  \"traceName\": \"trace.json\"\n}\n")?;
    out.flush()?;
    Ok(written)
}

/// Peak of this process's memory so far.
fn peak() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(format!("{:.1} MB", kilobytes * 1024.0 / 1e6))
}

fn import(path: &Path, what: &str) {
    let size = fs::metadata(path).expect("the trace is there").len();
    let begun = Instant::now();
    let file = File::open(path).expect("the trace is there");
    let found = read("trace.json", file, &Rules::default(), Selection::default()).expect("a trace");
    println!(
        "{what}: {} events, {:.1} MB, {} kernels: {:.2} s, peak {}",
        found.events,
        size as f64 / 1e6,
        found.ops,
        begun.elapsed().as_secs_f64(),
        peak().unwrap_or_else(|| "not known".to_owned()),
    );
}

fn main() -> io::Result<()> {
    let events = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let folder = tempfile::tempdir()?;
    let (plain, packed) = (folder.path().join("trace.json"), folder.path().join("trace.json.gz"));
    write(&mut BufWriter::new(File::create(&plain)?), events)?;
    let mut encoder = flate2::read::GzEncoder::new(File::open(&plain)?, flate2::Compression::fast());
    let (mut out, mut piece) = (BufWriter::new(File::create(&packed)?), vec![0; 1 << 16]);
    loop {
        match encoder.read(&mut piece)? {
            0 => break,
            read => out.write_all(&piece[..read])?,
        }
    }
    out.flush()?;
    println!("peak before: {}", peak().unwrap_or_else(|| "not known".to_owned()));
    import(&plain, "plain ");
    import(&packed, "packed");
    Ok(())
}
