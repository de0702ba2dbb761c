//! Which number formats this runtime has.

use crate::error::{Error, Result};
use crate::job::model::Dtype::{self, Bf16, Fp8, Fp32};
use crate::runtime::cuda::Device;
use crate::runtime::cuda::ops::quantise;
use crate::runtime::host::precision::Policy;

/// Whether a policy can be run. One that says nothing is run in this runtime's own formats: bf16, with sums, master weights, gradients and
/// moments in fp32.
///
/// Moments that are bf16 are rounded to it at every step, but still take the place of the wider format. A router, in bf16 or fp32, has its sums and scores in fp32 and reads its weights in bf16.
///
/// # Errors
/// If a field has a format that this runtime has not, or a GPU has no FP8.
pub fn check(policy: &Policy, devices: &[impl AsRef<Device>]) -> Result<()> {
    let fields: [(&str, Option<Dtype>, &[Dtype]); 11] = [
        ("products", policy.products().inputs, &[Bf16, Fp8]),
        ("embedding", policy.stream(), &[Bf16]),
        ("head", policy.head().inputs, &[Bf16]),
        ("router", policy.router().inputs, &[Bf16, Fp32]),
        ("attention_core", policy.core(), &[Bf16]),
        ("dispatch", policy.dispatch(), &[Bf16, Fp8]),
        ("combine", policy.combine(), &[Bf16]),
        ("weights", policy.weights(), &[Bf16]),
        ("master", policy.master(), &[Fp32]),
        ("gradients", policy.gradients(), &[Fp32]),
        ("moments", policy.moments(), &[Bf16, Fp32]),
    ];
    for (field, format, has) in fields {
        if let Some(format) = format.filter(|format| !has.contains(format)) {
            return Err(Error::new(format!(
                "the model's precision says `{field}: {format:?}`; the CUDA runtime has {has:?} there"
            ))
            .help("`--backend host` runs every format, slowly"));
        }
    }
    let fp8 = fields.iter().any(|&(_, format, _)| format == Some(Fp8));
    if fp8 {
        devices.iter().try_for_each(|device| quantise::require(device.as_ref()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::job::model::Precision;

    type Change = fn(&mut Precision);

    #[test]
    fn formats_that_are_not_there_are_named() {
        let none: [Arc<Device>; 0] = [];
        let said = |change: Change| {
            let mut precision = Precision::default();
            change(&mut precision);
            check(&Policy::of(&precision), &none).err().map(|error| error.to_string())
        };
        assert_eq!(said(|_| {}), None, "DeepSeek-V3's");
        assert!(check(&Policy::EXACT, &none).is_ok());
        let wrong: [(&str, Change); 11] = [
            ("products: Fp32", |p| p.products = Fp32),
            ("embedding: Fp32", |p| p.embedding = Fp32),
            ("head: Fp8", |p| p.head = Fp8),
            ("router: Fp8", |p| p.router = Fp8),
            ("attention_core: Fp8", |p| p.attention_core = Fp8),
            ("dispatch: Fp32", |p| p.dispatch = Fp32),
            ("combine: Fp8", |p| p.combine = Fp8),
            ("weights: Fp32", |p| p.weights = Fp32),
            ("master: Bf16", |p| p.master = Bf16),
            ("gradients: Bf16", |p| p.gradients = Bf16),
            ("moments: Fp8", |p| p.moments = Fp8),
        ];
        for (what, change) in wrong {
            assert!(said(change).is_some_and(|text| text.contains(what)), "{what}");
        }
    }
}
