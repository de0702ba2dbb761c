//! A profile: what ops took on a GPU, measured. `dualweave tune` writes it, from its own measurements or from a trace's; `--profile` reads
//! it; `machine` has what it changes.

use serde::{Deserialize, Serialize};

use super::Cluster;
use crate::error::{Error, Result};
use crate::ir::Work;
use crate::units::Nanos;

/// The form of profiles that is written and read.
pub const VERSION: u32 = 2;
/// A profile of more ops was not measured by anyone.
const MOST_OPS: usize = 10_000;

/// Times of ops on one kind of GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Of the form of the file: [`VERSION`].
    pub version: u32,
    /// The GPU, as its driver names it.
    pub gpu: String,
    /// Its SMs.
    pub sms: u32,
    /// For people: the model whose ops were run.
    pub model: String,
    /// The ops ran beside others, as in a trace of training: what they lose to each other is in their times.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overlapped: bool,
    /// Each work once.
    pub ops: Vec<ProfiledOp>,
}

/// Times of one op; with nothing beside it, unless the profile is [`Profile::overlapped`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ProfiledOp {
    /// For people: `Attention F`.
    pub op: String,
    /// What was done: all ops that do the same take as long.
    pub work: Work,
    /// Ascending in SMs.
    pub points: Vec<Point>,
}

/// Times of an op with a number of SMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// SMs that it had; of a copy engine 0.
    pub sms: u32,
    /// Median, in ns.
    pub time: Nanos,
    /// Quartiles, in ns.
    pub quartiles: (Nanos, Nanos),
    /// Runs that were timed.
    pub runs: u32,
}

impl Profile {
    /// Reads a profile. `name` is the file's, for messages.
    ///
    /// # Errors
    /// If the text is no profile, or says what cannot be.
    pub fn from_ron(name: &str, text: &str) -> Result<Self> {
        let options = ron::Options::default().with_default_extension(ron::extensions::Extensions::UNWRAP_NEWTYPES);
        let profile: Self = options.from_str(text).map_err(|error| {
            crate::error::from_ron(name, text, &error).help("a profile is what `dualweave tune` writes")
        })?;
        let refused = |what: String| {
            Err(Error::new(format!("the profile `{name}` {what}")).help("`dualweave tune` writes profiles"))
        };
        if profile.version != VERSION {
            return refused(format!("is of version {}; this dualweave reads version {VERSION}", profile.version));
        }
        if profile.ops.len() > MOST_OPS {
            return refused(format!("has {} ops, more than {MOST_OPS}", profile.ops.len()));
        }
        for (at, op) in profile.ops.iter().enumerate() {
            if op.points.is_empty() {
                return refused(format!("has no times for {}", op.op));
            }
            if !op.points.is_sorted_by(|one, next| one.sms < next.sms) {
                return refused(format!("has times for {} that do not ascend in SMs", op.op));
            }
            if let Some(point) = op.points.iter().find(|point| point.sms > profile.sms || point.time == Nanos::ZERO) {
                return refused(format!(
                    "says that {} takes {} with {} of {} SMs",
                    op.op, point.time, point.sms, profile.sms
                ));
            }
            if profile.ops[..at].iter().any(|other| other.work == op.work) {
                return refused(format!("has the work of {} twice", op.op));
            }
        }
        Ok(profile)
    }

    /// The text of the file.
    ///
    /// # Errors
    /// Never, for what `tune` makes.
    pub fn to_ron(&self) -> Result<String> {
        let options = ron::Options::default().with_default_extension(ron::extensions::Extensions::UNWRAP_NEWTYPES);
        let pretty = ron::ser::PrettyConfig::default().compact_structs(true).depth_limit(3);
        let text = options.to_string_pretty(self, pretty);
        let text = text.map_err(|error| Error::new(format!("the profile cannot be written: {error}")))?;
        let how = if self.overlapped { "as they ran beside others" } else { "with nothing beside" };
        Ok(format!(
            "// Times of ops, by `dualweave tune`: medians and quartiles in nanoseconds, by SMs, {how}.\n{text}\n"
        ))
    }

    /// Whether it can stand for a cluster's GPU; what a person should know, if their names differ.
    ///
    /// # Errors
    /// If the GPUs have not as many SMs.
    pub fn suits(&self, cluster: &Cluster) -> Result<Option<String>> {
        let gpu = &cluster.gpu;
        if self.sms != gpu.sms {
            return Err(Error::new(format!(
                "the profile is of a GPU with {} SMs ({}), the job's {} has {}",
                self.sms, self.gpu, gpu.name, gpu.sms
            ))
            .field("cluster.gpu.sms")
            .help("measure on the GPU that the job names, or name the one that was measured"));
        }
        let named = self.gpu.contains(&gpu.name) || gpu.name.contains(&self.gpu);
        Ok((!named).then(|| format!("the profile was measured on {}, the job names {}", self.gpu, gpu.name)))
    }
}
