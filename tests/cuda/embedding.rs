//! Token embedding, against the same in f64.

use dualweave::runtime::cuda::Bf16;
use dualweave::runtime::cuda::ops::embedding;

use crate::gpu::{F32, Random, assert_close, gpu};

/// Tokens of a small vocabulary, so that many are alike; the second half of it is rare.
fn tokens(random: &mut Random, count: usize, vocabulary: usize) -> Vec<u32> {
    let mut token = || {
        let range = if random.bits().is_multiple_of(16) { vocabulary } else { vocabulary.div_ceil(2) };
        (random.bits() % range as u64) as u32
    };
    (0..count).map(|_| token()).collect()
}

#[test]
fn rows_are_looked_up() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(60);
    for (count, vocabulary, hidden) in [(1, 3, 8), (257, 50, 264), (100, 1000, 7168)] {
        let tokens = tokens(&mut random, count, vocabulary);
        let (table, _) = random.f32(vocabulary * hidden, 0.0, 1.0);
        let rows = tokens.iter().flat_map(|&token| &table[token as usize * hidden..][..hidden]);
        let expected: Vec<Bf16> = rows.map(|&value| Bf16::of(value)).collect();
        let (table, tokens, y) = (gpu.given(&table), gpu.given(&tokens), gpu.poisoned(count * hidden));
        gpu.steady(&[y.cast()], |stream, sms| embedding::forward(stream, sms, table, tokens, y, hidden));
        assert!(y.read(&gpu.stream).expect("results") == expected, "{count} of {vocabulary} × {hidden}");
    }
}

#[test]
fn gradients_are_added_by_token() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(61);
    // More positions than are looked through at a time; more columns than a block has; one token only.
    for (count, vocabulary, hidden) in [(1, 3, 8), (2500, 50, 16), (1024, 700, 4104), (1500, 1, 264)] {
        let tokens = tokens(&mut random, count, vocabulary);
        let ((dy, exact), (start, mut expected)) =
            (random.bf16(count * hidden, 1.0), random.f32(vocabulary * hidden, 0.0, 1.0));
        for (row, &token) in exact.chunks(hidden).zip(&tokens) {
            let to = &mut expected[token as usize * hidden..][..hidden];
            to.iter_mut().zip(row).for_each(|(sum, d)| *sum += d);
        }
        let (dy, tokens, d_table) = (gpu.given(&dy), gpu.given(&tokens), gpu.poisoned(start.len()));
        gpu.steady(&[d_table.cast()], |stream, sms| {
            d_table.write(stream, &start)?;
            embedding::gradient(stream, sms, dy, tokens, d_table, hidden)
        });
        assert_close(&format!("{count} of {vocabulary} × {hidden}"), &gpu.numbers(d_table), &expected, F32);
    }
}
