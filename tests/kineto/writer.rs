//! Traces in the form that PyTorch's profiler writes, made from plain numbers. Times are microseconds.

use std::fmt::Write as _;

/// Thread of the training loop, and of autograd.
pub const MAIN: u32 = 438;
pub const AUTOGRAD: u32 = 480;

/// What has been written.
#[derive(Default)]
pub struct Writer {
    events: String,
    correlation: u64,
}

/// A kernel.
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    pub name: &'a str,
    pub stream: u64,
    pub start: u64,
    pub time: u64,
    pub blocks: u64,
}

impl Writer {
    /// Any event.
    pub fn event(&mut self, text: &str) {
        if !self.events.is_empty() {
            self.events.push(',');
        }
        let _ = write!(self.events, "\n  {text}");
    }

    fn slice(&mut self, cat: &str, name: &str, (pid, tid): (u32, u64), (start, time): (u64, u64), args: &str) {
        self.event(&format!(
            "{{\n    \"ph\": \"X\", \"cat\": \"{cat}\", \"name\": \"{name}\", \"pid\": {pid}, \"tid\": {tid},\n    \
             \"ts\": {start}.000, \"dur\": {time}.000,\n    \"args\": {{\n      {args}\n    }}\n  }}"
        ));
    }

    /// A kernel of which nobody says who launched it.
    pub fn kernel(&mut self, kernel: Kernel) {
        self.correlation += 1;
        let (correlation, stream) = (self.correlation, kernel.stream);
        let blocks = kernel.blocks as f64 / 132.0;
        let args = format!(
            "\"External id\": 7,      \"queued\": 0, \"device\": 0, \"context\": 1,      \"stream\": {stream}, \"correlation\": \
             {correlation},      \"registers per thread\": 32,      \"shared memory\": 0,      \"blocks per SM\": {blocks:.6},      \
             \"warps per SM\": 8.0,      \"grid\": [{}, 1, 1],      \"block\": [256, 1, 1],      \"est. achieved occupancy %\": 50",
            kernel.blocks
        );
        self.slice("kernel", kernel.name, (0, stream), (kernel.start, kernel.time), &args);
    }

    /// The same, launched by a thread.
    pub fn launched(&mut self, kernel: Kernel, thread: u32, at: u64) {
        self.kernel(kernel);
        let args = format!("\"External id\": 7, \"cbid\": 211, \"correlation\": {}", self.correlation);
        self.slice("cuda_runtime", "cudaLaunchKernel", (MAIN, thread.into()), (at, 1), &args);
    }

    /// An annotation.
    pub fn annotation(&mut self, name: &str, thread: u32, start: u64, time: u64) {
        self.slice("user_annotation", name, (MAIN, thread.into()), (start, time), "\"External id\": 3");
    }

    /// An annotation, as the profiler finds it on a stream.
    pub fn gpu_annotation(&mut self, name: &str, number: u64, stream: u64, start: u64, time: u64) {
        self.slice("gpu_user_annotation", name, (0, stream), (start, time), &format!("\"External id\": {number}"));
    }

    /// A node of autograd.
    pub fn node(&mut self, name: &str, thread: u32, start: u64, time: u64) {
        let name = format!("autograd::engine::evaluate_function: {name}");
        self.slice("cpu_op", &name, (MAIN, thread.into()), (start, time), "\"External id\": 9");
    }

    /// An arrow from a forward operator to a backward one.
    pub fn flow(&mut self, id: u64, forward: (u32, u64), backward: (u32, u64)) {
        for (phase, (thread, at), more) in [("s", forward, ""), ("f", backward, ", \"bp\": \"e\"")] {
            self.event(&format!(
                "{{\n    \"ph\": \"{phase}\", \"id\": {id}, \"pid\": {MAIN}, \"tid\": {thread}, \"ts\": {at}.000,\n    \
                 \"cat\": \"fwdbwd\", \"name\": \"fwdbwd\"{more}\n  }}"
            ));
        }
    }

    /// The whole file.
    pub fn finish(&self) -> String {
        format!(
            "\n  {{\n    \"schemaVersion\": 1,\n    \"deviceProperties\": [\n    {{\n      \"id\": 0, \"name\": \"NVIDIA H800\", \
             \"numSms\": 132\n    }}\n    ],\n  \
             \"displayTimeUnit\": \"ms\",\n  \"traceEvents\": [{}\n  ],\n  \"traceName\": \"trace.json\"\n}}\n",
            self.events
        )
    }
}
