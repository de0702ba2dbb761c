//! Writing a job: RON that [`load`](super::load()) reads.

use ron::ser::PrettyConfig;
use serde::Serialize;

use super::{Job, source};

impl Job {
    /// The job as RON text, all of it in one file. Times that were measured (`--profile`) are not part of a job.
    pub fn to_ron(&self) -> String {
        let (model, cluster, training) = (pretty(&self.model), pretty(&self.cluster), pretty(&self.training));
        format!("(\n    model: {model},\n    cluster: {cluster},\n    training: {training},\n)\n")
    }
}

/// A part of a job, indented once behind its first line.
fn pretty<T: Serialize>(part: &T) -> String {
    let config = PrettyConfig::new().new_line("\n");
    // Only maps with non-scalar keys or failing `Serialize` implementations can fail, and jobs have neither.
    source::options().to_string_pretty(part, config).expect("a job serializes").replace('\n', "\n    ")
}
