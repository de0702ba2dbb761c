//! The CUDA runtime on a GPU, against the same arithmetic on the host. Without a GPU every test says that it is skipped, and why.
//!
//! Inputs are random, outputs are poisoned with NaN before each run, and every element of them is compared.

#[path = "cuda/attention.rs"]
mod attention;
#[path = "cuda/bias.rs"]
mod bias;
#[path = "cuda/checkpoint.rs"]
mod checkpoint;
#[path = "cuda/element.rs"]
mod element;
#[path = "cuda/embedding.rs"]
mod embedding;
#[path = "cuda/exchange.rs"]
mod exchange;
#[path = "cuda/exchange_forms.rs"]
mod exchange_forms;
#[path = "cuda/expert_bias.rs"]
mod expert_bias;
#[path = "cuda/forms.rs"]
mod forms;
#[path = "cuda/gate.rs"]
mod gate;
#[path = "cuda/gpu.rs"]
mod gpu;
#[path = "cuda/grouped.rs"]
mod grouped;
#[path = "cuda/grouped_fp8.rs"]
mod grouped_fp8;
#[path = "cuda/latent.rs"]
mod latent;
#[path = "cuda/loss.rs"]
mod loss;
#[path = "cuda/norm.rs"]
mod norm;
#[path = "cuda/optimizer.rs"]
mod optimizer;
#[path = "cuda/product.rs"]
mod product;
#[path = "cuda/product_speed.rs"]
mod product_speed;
#[path = "cuda/quantise.rs"]
mod quantise;
#[path = "cuda/reduce.rs"]
mod reduce;
#[path = "cuda/rope.rs"]
mod rope;
#[path = "cuda/router.rs"]
mod router;
#[path = "cuda/signals.rs"]
mod signals;
#[path = "cuda/swiglu.rs"]
mod swiglu;
#[path = "cuda/train.rs"]
mod train;
