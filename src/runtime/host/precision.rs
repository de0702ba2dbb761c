//! What number formats do to values: rounding to bf16 and to FP8 (e4m3) with one scale per tile, as in DeepSeek-V3
//! (technical report, section 3.3). Values stay `f32` or `f64`, but are ones that the format has; products of them are
//! accumulated in that type.
//!
//! What the report quantises how: weights and activations of the products in FP8, with fp32 scales, but powers of two for what experts are
//! sent (forward and backward) and for what attention's output projection reads. Activations are kept in FP8 and quantised again, in tiles
//! along the tokens, for the weights' gradients; gradients of results are quantised for either product from bf16. Not modelled: that
//! the output projection's input is kept in a format of 12 bits, that of a routed SwiGLU only the input is kept, and FP8 tensor cores'
//! narrow accumulation.

use std::ops::Range;

use super::real::Real;
use super::tensor::Matrix;
use crate::job::model::{Dtype, Precision};

/// A format that values are rounded to; `None`: they stay as they are.
pub type Format = Option<Dtype>;

/// Which values of a matrix share an FP8 scale. Tiles at the right and lower edge are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiles {
    /// 1 × 128, along a row: activations and gradients, as inputs of a product over their columns.
    Rows,
    /// 128 × 1, along a column: activations and gradients, as inputs of a product over the tokens.
    Columns,
    /// 128 × 128: weights.
    Blocks,
}

/// Which scale takes the largest value of an FP8 tile to 448, or below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The fp32 number that takes it to 448.
    Exact,
    /// The least power of two that takes it no higher. Tiles along the other dimension then quantise the same values again without an
    /// error, but where they become too small for their tile.
    PowerOfTwo,
}

impl Scale {
    /// Of a tile whose largest magnitude this is; 0 if that is below what an fp32 scale can lift.
    fn of(self, largest: f64) -> f64 {
        let exact = f64::from((largest / E4M3_MAX) as f32);
        match self {
            Self::Exact => exact,
            Self::PowerOfTwo if exact == 0.0 => 0.0,
            Self::PowerOfTwo => {
                let bits = (largest / E4M3_MAX).to_bits();
                let above = u64::from(bits & ((1 << 52) - 1) != 0);
                f64::from_bits(((bits >> 52) + above) << 52)
            }
        }
    }
}

/// Width of a tile.
const TILE: usize = 128;

/// The largest e4m3 number; larger ones are clamped to it.
pub const E4M3_MAX: f64 = 448.0;

/// How a number format rounds a single value: `mantissa` bits after the leading one, down to `2^lowest`, below which steps
/// are equal.
struct Rounding {
    mantissa: i32,
    lowest: i32,
}

const BF16: Rounding = Rounding { mantissa: 7, lowest: -126 };
const E4M3: Rounding = Rounding { mantissa: 3, lowest: -6 };

impl Rounding {
    /// The nearest number of the format, of two equally near ones the even one; exponents are not bounded above.
    fn nearest(&self, value: f64) -> f64 {
        let exponent = ((value.to_bits() >> 52) & 0x7ff) as i32 - 1023;
        // Beyond both formats (infinities too) it is enough to stay there.
        let step = exponent.clamp(self.lowest, 512) - self.mantissa;
        // In the binade from here on, neighbouring doubles are one step apart: adding it rounds, to even, and taking it away
        // is exact. (3 · 2^51 steps: the sum stays in the binade for values of either sign.)
        let anchor = f64::from_bits(((step + 52 + 1023) as u64) << 52) * 1.5;
        (value + anchor) - anchor
    }
}

/// To bf16, to nearest, ties to even; infinite if too large.
pub fn to_bf16(value: f64) -> f64 {
    let rounded = BF16.nearest(value);
    // Half a step beyond the largest number, an infinity is nearest.
    if rounded.abs() >= f64::from_bits((128 + 1023) << 52) { f64::INFINITY.copysign(value) } else { rounded }
}

/// To FP8 e4m3 without a scale, to nearest, ties to even; clamped to the largest number.
pub fn to_e4m3(value: f64) -> f64 {
    E4M3.nearest(value.clamp(-E4M3_MAX, E4M3_MAX))
}

/// Rounds a matrix in place, in FP8 with exact scales.
pub fn round<T: Real>(matrix: &mut Matrix<T>, format: Format, tiles: Tiles) {
    round_scaled(matrix, format, tiles, Scale::Exact);
}

/// Rounds a matrix in place; in FP8 each tile has its own scale.
pub fn round_scaled<T: Real>(matrix: &mut Matrix<T>, format: Format, tiles: Tiles, scale: Scale) {
    match format {
        None => {}
        Some(Dtype::Fp32) => each(matrix, |value| f64::from(value as f32)),
        Some(Dtype::Bf16) => each(matrix, to_bf16),
        Some(Dtype::Fp8) => {
            let (rows, columns) = (matrix.rows(), matrix.columns());
            let (high, wide) = match tiles {
                Tiles::Rows => (1, TILE),
                Tiles::Columns => (TILE, 1),
                Tiles::Blocks => (TILE, TILE),
            };
            for row in (0..rows).step_by(high) {
                for column in (0..columns).step_by(wide) {
                    round_tile(matrix, row..rows.min(row + high), column..columns.min(column + wide), scale);
                }
            }
        }
    }
}

/// A rounded copy.
pub fn rounded<T: Real>(matrix: &Matrix<T>, format: Format, tiles: Tiles, scale: Scale) -> Matrix<T> {
    let mut copy = matrix.clone();
    round_scaled(&mut copy, format, tiles, scale);
    copy
}

fn each<T: Real>(matrix: &mut Matrix<T>, rounding: impl Fn(f64) -> f64) {
    matrix.values_mut().iter_mut().for_each(|value| *value = T::of(rounding(value.to_f64())));
}

fn round_tile<T: Real>(matrix: &mut Matrix<T>, rows: Range<usize>, columns: Range<usize>, scale: Scale) {
    let magnitudes =
        rows.clone().flat_map(|row| matrix.row(row)[columns.clone()].iter().map(|value| value.to_f64().abs()));
    let largest = magnitudes.fold(0.0, f64::max);
    let scale = scale.of(largest);
    if scale == 0.0 {
        rows.for_each(|row| matrix.row_mut(row)[columns.clone()].fill(T::ZERO));
        return;
    }
    for row in rows {
        for value in &mut matrix.row_mut(row)[columns.clone()] {
            *value = T::of(to_e4m3(value.to_f64() / scale) * scale);
        }
    }
}

/// The formats of a run: none at all, or those of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy(Option<Precision>);

/// The formats around one matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductFormats {
    /// Its inputs: activations, weights, and the gradient of its output.
    pub inputs: Format,
    /// FP8 scales of the activations.
    pub activations: Scale,
    /// FP8 scales of the gradient of its output.
    pub output_gradients: Scale,
    /// Weights, before they are read as `inputs`.
    pub weights: Format,
    /// Its results, in F and in I.
    pub results: Format,
    /// The accumulated weight gradient.
    pub gradients: Format,
}

/// The formats of a SwiGLU MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpFormats {
    /// Gate and up.
    pub gate_up: ProductFormats,
    /// Down.
    pub down: ProductFormats,
}

/// FP8 scales of what is sent to experts.
pub const SENT: Scale = Scale::PowerOfTwo;

impl Policy {
    /// No rounding beyond that of the numbers themselves.
    pub const EXACT: Self = Self(None);

    /// The formats of a job.
    pub fn of(precision: &Precision) -> Self {
        Self(Some(precision.clone()))
    }

    /// The projections of attention but the output's, and those in front of MTP modules.
    pub fn products(&self) -> ProductFormats {
        self.product(|precision| precision.products)
    }

    /// The output projection of attention. What it reads is quantised again for its weights' gradient, so scales are powers of two.
    pub fn attention_output(&self) -> ProductFormats {
        ProductFormats { activations: Scale::PowerOfTwo, ..self.products() }
    }

    /// A dense MLP, or the shared expert.
    pub fn mlp(&self) -> MlpFormats {
        MlpFormats { gate_up: self.products(), down: self.products() }
    }

    /// A routed expert: it reads what was sent in FP8 as it came, activations in F and the gradients of its results in I.
    pub fn expert(&self) -> MlpFormats {
        MlpFormats {
            gate_up: ProductFormats { activations: SENT, ..self.products() },
            down: ProductFormats { output_gradients: SENT, ..self.products() },
        }
    }

    /// The output head.
    pub fn head(&self) -> ProductFormats {
        self.product(|precision| precision.head)
    }

    /// The router.
    pub fn router(&self) -> ProductFormats {
        self.product(|precision| precision.router)
    }

    /// Embedding, norms and the residual stream, and the gradients of all of them.
    pub fn stream(&self) -> Format {
        self.format(|precision| precision.embedding)
    }

    /// q, k, v, o and the attention weights.
    pub fn core(&self) -> Format {
        self.format(|precision| precision.attention_core)
    }

    /// What is sent to experts.
    pub fn dispatch(&self) -> Format {
        self.format(|precision| precision.dispatch)
    }

    /// What comes back from them.
    pub fn combine(&self) -> Format {
        self.format(|precision| precision.combine)
    }

    /// Accumulated gradients.
    pub fn gradients(&self) -> Format {
        self.format(|precision| precision.gradients)
    }

    /// The optimizer's copy of the weights.
    pub fn master(&self) -> Format {
        self.format(|precision| precision.master)
    }

    /// The optimizer's moments.
    pub fn moments(&self) -> Format {
        self.format(|precision| precision.moments)
    }

    fn format(&self, of: impl Fn(&Precision) -> Dtype) -> Format {
        self.0.as_ref().map(of)
    }

    /// Kernels leave results of FP8 products in bf16. A product in fp32 reads the master weights, as the others' format
    /// would undo its purpose.
    fn product(&self, of: impl Fn(&Precision) -> Dtype) -> ProductFormats {
        let inputs = self.format(of);
        let results = if inputs == Some(Dtype::Fp8) { Some(Dtype::Bf16) } else { inputs };
        let weights = if inputs == Some(Dtype::Fp32) { inputs } else { self.format(|precision| precision.weights) };
        let (activations, output_gradients) = (Scale::Exact, Scale::Exact);
        ProductFormats { inputs, activations, output_gradients, weights, results, gradients: self.gradients() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a bf16 code: the upper half of an `f32`.
    fn bf16(code: u16) -> f64 {
        f64::from(f32::from_bits(u32::from(code) << 16))
    }

    /// The value of an e4m3 code (Micikevicius et al. 2022, table 1): bias 7, no infinities, NaN where all bits are set.
    fn e4m3(code: u8) -> Option<f64> {
        let (exponent, mantissa) = (i32::from(code >> 3 & 0xf), f64::from(code & 7));
        let magnitude = match exponent {
            0 => mantissa / 8.0 * 2f64.powi(-6),
            15 if code & 7 == 7 => return None,
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        Some(if code & 0x80 == 0 { magnitude } else { -magnitude })
    }

    /// Checks what lies between two neighbours, of which `even` says the one that a tie goes to.
    fn between(round: fn(f64) -> f64, low: f64, high: f64, even: f64) {
        let middle = low + (high - low) / 2.0;
        for sign in [1.0, -1.0] {
            assert_eq!(round(sign * low), sign * low);
            assert_eq!(round(sign * high), sign * high);
            assert_eq!(round(sign * middle), sign * even, "the middle of {low:e} and {high:e}");
            assert_eq!(round(sign * middle.next_down()), sign * low);
            assert_eq!(round(sign * middle.next_up()), sign * high);
        }
    }

    #[test]
    fn bf16_is_the_nearest_of_all_its_numbers() {
        for code in 0..0x7f7f_u16 {
            let even = if code % 2 == 0 { code } else { code + 1 };
            between(to_bf16, bf16(code), bf16(code + 1), bf16(even));
        }
        let largest = bf16(0x7f7f);
        let half_a_step = (largest - bf16(0x7f7e)) / 2.0;
        assert_eq!(to_bf16((largest + half_a_step).next_down()), largest);
        assert_eq!(to_bf16(-largest - half_a_step), f64::NEG_INFINITY);
        assert_eq!(to_bf16(f64::INFINITY), f64::INFINITY);
        assert_eq!(to_bf16(f64::MIN), f64::NEG_INFINITY);
        assert!(to_bf16(f64::NAN).is_nan());
    }

    #[test]
    fn e4m3_is_the_nearest_of_all_its_numbers() {
        let codes: Vec<u8> = (0..=u8::MAX).collect();
        assert_eq!(codes.iter().filter(|&&code| e4m3(code).is_none()).count(), 2);
        for code in codes {
            if let Some(value) = e4m3(code) {
                assert_eq!(to_e4m3(value), value, "code {code:#x}");
            }
        }
        for code in 0..0x7e_u8 {
            let even = if code % 2 == 0 { code } else { code + 1 };
            let value = |code| e4m3(code).expect("a number");
            between(to_e4m3, value(code), value(code + 1), value(even));
        }
        assert_eq!((to_e4m3(1e9), to_e4m3(-449.0)), (448.0, -448.0));
    }

    #[test]
    fn each_tile_has_its_own_scale() {
        // Row 0: 128 values up to 448, then one small value, which alone makes its tile and keeps all its bits.
        let mut values: Vec<f32> = (0..129).map(|index| index as f32 * 3.5).collect();
        values[128] = 1.2345e-7;
        let matrix = Matrix::new(1, 129, values.clone());
        let tiles = rounded(&matrix, Some(Dtype::Fp8), Tiles::Rows, Scale::Exact);
        let scale = 127.0 * 3.5 / 448.0;
        for (&value, &rounded) in values.iter().zip(tiles.values()).take(128) {
            let expected = to_e4m3(f64::from(value) / scale) * scale;
            assert!((f64::from(rounded) - expected).abs() <= 1e-5 * expected);
        }
        assert!((tiles.values()[128] / values[128] - 1.0).abs() < 1e-6);
        // Along columns every value is the largest of its tile.
        let alone = rounded(&matrix, Some(Dtype::Fp8), Tiles::Columns, Scale::Exact);
        assert!(alone.values().iter().zip(&values).all(|(a, b)| (a - b).abs() <= 1e-6 * b));
        // In blocks the small value shares no tile with the large ones either, but a second row does.
        let two = Matrix::new(2, 1, vec![448.0_f32, 1e-4]);
        assert_eq!(rounded(&two, Some(Dtype::Fp8), Tiles::Blocks, Scale::Exact).values(), &[448.0, 0.0]);
        assert!((rounded(&two, Some(Dtype::Fp8), Tiles::Rows, Scale::Exact).values()[1] - 1e-4).abs() < 1e-10);
    }

    #[test]
    fn scales_that_are_powers_of_two_are_the_least_that_fit() {
        for exponent in -100..100 {
            for largest in [1.0, 1.75, 1.75_f64.next_up(), 1.9].map(|value| value * 2f64.powi(exponent)) {
                let fits: Vec<f64> =
                    (-160..160).map(|e| 2f64.powi(e)).filter(|scale| largest / scale <= 448.0).collect();
                assert_eq!(Scale::PowerOfTwo.of(largest), fits[0], "{largest:e}");
            }
        }
        assert_eq!(Scale::PowerOfTwo.of(448.0), 1.0);
        assert_eq!(Scale::PowerOfTwo.of(1e-50), 0.0);
    }

    #[test]
    fn powers_of_two_can_be_quantised_again() {
        // Rows of quite different size, whose largest values are nowhere round.
        let value = |index: usize| ((index as f64 * 0.7).sin() + 1.5) * [1.0, 3.3, 0.4][index / 150];
        let matrix = Matrix::new(3, 150, (0..450).map(value).collect::<Vec<f64>>());
        let again = |scale| {
            let once = rounded(&matrix, Some(Dtype::Fp8), Tiles::Rows, scale);
            let twice = rounded(&once, Some(Dtype::Fp8), Tiles::Columns, scale);
            (once == twice, once == rounded(&once, Some(Dtype::Fp8), Tiles::Rows, scale))
        };
        assert_eq!(again(Scale::PowerOfTwo), (true, true));
        assert!(!again(Scale::Exact).0);
    }

    #[test]
    fn zeros_stay_zeros() {
        let zeros = Matrix::<f32>::zeros(3, 200);
        for scale in [Scale::Exact, Scale::PowerOfTwo] {
            assert_eq!(rounded(&zeros, Some(Dtype::Fp8), Tiles::Blocks, scale), zeros);
        }
    }
}
