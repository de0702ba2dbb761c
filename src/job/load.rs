//! Reading a job: the job file, the files it names, the overrides of the command line, and the check of it all.
//!
//! A job file is RON: `(model: .., cluster: .., training: ..)`. Each part is written inline, `( .. )`, or in a file of its
//! own, `file("cluster.ron")`; a model can also be imported from a Hugging Face config, `hf("config.json")`, or, with what
//! such a config does not say, `hf(config: "config.json", name: "..", precision: ( .. ))`. Paths are relative to the job
//! file. What is read stays at hand in [`Loaded`], so that an error which a later pass finds in a field can still point to
//! where that field is written.

use std::ops::Range;
use std::path::Path;

use ron::value::RawValue;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::hf;
use super::model::Precision;
use super::overrides::Overrides;
use super::profile::Profile;
use super::source::{self, File, Place};
use super::{Cluster, Job, Model, Training};
use crate::error::{Error, Result};

/// A checked job, and where each part of it was written.
#[derive(Debug)]
pub struct Loaded {
    /// The job, overrides applied, checked.
    pub job: Job,
    /// What a person should know though it is no error: one sentence each.
    pub notes: Vec<String>,
    overrides: Overrides,
    model: Origin,
    cluster: Origin,
    training: Origin,
}

/// Reads the job file at `path` and everything that it names, applies `overrides`, and checks the result.
///
/// # Errors
/// If a file cannot be read, is not what it should be, or describes something that cannot be trained. The error points
/// to the place in the file.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Loaded> {
    let file = File::read(path)?;
    let parts: Parts<'_> = file.body().and_then(|span| file.parse(source::JOB, span)).map_err(|error| {
        let help = error.help_text().unwrap_or("a job is `(model: .., cluster: .., training: ..)`").to_owned();
        error.help(help)
    })?;
    let reader = PartReader { folder: path.parent().unwrap_or(Path::new("")), file: &file };
    let (model, model_origin, mut notes) = reader.model("model", parts.model)?;
    let (mut cluster, cluster_origin) = reader.plain::<Cluster>("cluster", parts.cluster)?;
    let (mut training, training_origin) = reader.plain::<Training>("training", parts.training)?;
    overrides.apply(&mut training);
    let profile = overrides.profile.as_ref().map(|path| {
        let file = File::read(path)?;
        Profile::from_ron(&file.name, &file.text)
    });
    cluster.gpu.measured.profile = profile.transpose()?;

    let job = Job { model, cluster, training };
    notes.extend(job.notes());
    let loaded = Loaded {
        job,
        notes,
        overrides: overrides.clone(),
        model: model_origin,
        cluster: cluster_origin,
        training: training_origin,
    };
    let suits = loaded.job.cluster.gpu.measured.profile.as_ref().map(|profile| profile.suits(&loaded.job.cluster));
    match loaded.job.check().and_then(|()| suits.transpose()) {
        Ok(note) => Ok(Loaded { notes: loaded.notes.into_iter().chain(note.flatten()).collect(), ..loaded }),
        Err(error) => Err(loaded.locate(error)),
    }
}

impl Loaded {
    /// Points an error that names a field of the job (see [`Error::field`]) to where the field is written: its value, or,
    /// if it is left to its default, the part that it belongs to. A field set on the command line is said to be. An
    /// error that has a place already, or names no field, comes back as it is.
    #[must_use]
    pub fn locate(&self, error: Error) -> Error {
        if error.has_place() {
            return error;
        }
        let Some((part, field)) = error.field_path().and_then(|path| path.split_once('.')) else {
            return error;
        };
        let origin = match part {
            "model" => &self.model,
            "cluster" => &self.cluster,
            "training" => match self.overrides.flag(field) {
                Some(flag) => return set_by(&flag, error),
                None => &self.training,
            },
            _ => return error,
        };
        let (file, span, label) = origin.place(field);
        error.at(&file.name, &file.text, span, label)
    }
}

/// Says that the flag is at fault, not the file.
fn set_by(flag: &str, error: Error) -> Error {
    let help = match error.help_text() {
        Some(help) => format!("{help}; it was set by `{flag}` on the command line"),
        None => format!("it was set by `{flag}` on the command line"),
    };
    error.help(help)
}

/// The parts of a job file, not yet read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "Job")]
struct Parts<'a> {
    #[serde(borrow)]
    model: &'a RawValue,
    #[serde(borrow)]
    cluster: &'a RawValue,
    #[serde(borrow)]
    training: &'a RawValue,
}

/// Where a part was written.
#[derive(Debug)]
enum Origin {
    /// As RON.
    Ron(Struct),
    /// As a Hugging Face config, with what the job adds to it.
    HuggingFace {
        /// The fields in `hf( .. )`.
        added: Struct,
        /// The config.
        config: File,
    },
}

/// A RON struct in a file.
#[derive(Debug)]
struct Struct {
    file: File,
    /// All of it.
    span: Range<usize>,
    /// What to point to for what is not written in it.
    head: Range<usize>,
}

impl Origin {
    /// The file, place and label of a field of this part.
    fn place(&self, field: &str) -> (&File, Range<usize>, String) {
        match self {
            Self::Ron(part) => part.place(field),
            Self::HuggingFace { added, config } => {
                let first = field.split('.').next().unwrap_or(field);
                let text = &added.file.text;
                match (source::find(text, added.span.clone(), first), hf::find(&config.text, field)) {
                    (Place::Enclosing(_), Some(span)) => (config, span, "here".into()),
                    _ => added.place(field),
                }
            }
        }
    }
}

impl Struct {
    fn place(&self, field: &str) -> (&File, Range<usize>, String) {
        let (span, label) = match source::find(&self.file.text, self.span.clone(), field) {
            Place::Value(span) => (span, "here".into()),
            Place::Enclosing(name) => {
                let last = field.rsplit('.').next().unwrap_or(field);
                (name.unwrap_or(self.head.clone()), format!("`{last}` is not written here"))
            }
        };
        (&self.file, self.first_line(span), label)
    }

    /// Of a span over several lines only the first, so that the diagnostic stays short.
    fn first_line(&self, span: Range<usize>) -> Range<usize> {
        let length = self.file.text[span.clone()].lines().next().map_or(0, str::len);
        span.start..span.start + length
    }
}

/// Reads parts of one job file.
struct PartReader<'a> {
    /// What the paths in the job file are relative to.
    folder: &'a Path,
    file: &'a File,
}

/// `hf(config: .., ..)`: a config and what it does not say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "hf")]
struct Imported {
    /// Path of the config.
    config: String,
    /// Replaces the name that the path gives.
    #[serde(default)]
    name: Option<String>,
    /// Number formats.
    #[serde(default)]
    precision: Option<Precision>,
}

impl PartReader<'_> {
    /// A part that is written inline or in a file.
    fn plain<T: DeserializeOwned>(&self, part: &str, raw: &RawValue) -> Result<(T, Origin)> {
        let span = source::offset_in(&self.file.text, raw.trim().get_ron());
        let (word, rest) = source::variant(&self.file.text, span.clone());
        match word {
            "file" => {
                let (path,): (String,) =
                    self.file.parse(part, rest.clone()).map_err(|error| error.help(forms(part)))?;
                let file = self.open(&path, rest)?;
                let span = file.body()?;
                let value = file.parse(part, span.clone())?;
                let head = span.start..(span.start + 1).min(span.end);
                Ok((value, Origin::Ron(Struct { file, span, head })))
            }
            "hf" => Err(Error::new(format!("`{part}` cannot be imported: only a model has a Hugging Face config"))
                .help(format!("write `{part}: ( .. )` or `{part}: file(\"{part}.ron\")`"))
                .at(&self.file.name, &self.file.text, span.start..rest.start, "here")),
            _ => {
                let value = self.file.parse(part, span.clone()).map_err(|error| {
                    // A word that is none of the three forms, or no struct at all.
                    if rest.is_empty() || !word.is_empty() { error.help(forms(part)) } else { error }
                })?;
                Ok((value, Origin::Ron(self.inline(part, span))))
            }
        }
    }

    /// The model, which can also be imported.
    fn model(&self, part: &str, raw: &RawValue) -> Result<(Model, Origin, Vec<String>)> {
        let span = source::offset_in(&self.file.text, raw.trim().get_ron());
        let (word, rest) = source::variant(&self.file.text, span.clone());
        if word != "hf" {
            return self.plain(part, raw).map(|(model, origin)| (model, origin, Vec::new()));
        }
        let imported = match self.file.parse::<(String,)>("hf", rest.clone()) {
            Ok((config,)) => Imported { config, name: None, precision: None },
            Err(_) => self.file.parse("hf", rest.clone())?,
        };
        let config = self.open(&imported.config, rest)?;
        let hf::Imported { mut model, mut notes, precision_fits } = hf::import(&config.name, &config.text)?;
        if let Some(name) = imported.name {
            model.name = name;
        }
        match imported.precision {
            Some(precision) => model.precision = precision,
            None if !precision_fits => notes.push(format!(
                "`{}` does not say in which precision to train: DeepSeek-V3's is taken (FP8 products); to choose, write \
                 `hf(config: \"{}\", precision: (products: Bf16, dispatch: Bf16))`",
                config.name, imported.config
            )),
            None => {}
        }
        Ok((model, Origin::HuggingFace { added: self.inline(part, span), config }, notes))
    }

    /// A part that stands in the job file itself.
    fn inline(&self, part: &str, span: Range<usize>) -> Struct {
        let parts = self.file.body().map_or(Vec::new(), |body| source::fields(&self.file.text, body));
        let name = parts.into_iter().map(|field| field.name).find(|name| &self.file.text[name.clone()] == part);
        let head = name.unwrap_or(span.start..(span.start + 1).min(span.end));
        Struct { file: self.file.clone(), span, head }
    }

    /// Opens a file that the job names at `span`.
    fn open(&self, path: &str, span: Range<usize>) -> Result<File> {
        File::read(&self.folder.join(path)).map_err(|error| {
            let help = error.help_text().unwrap_or("paths are relative to the job file").to_owned();
            error.help(help).at(&self.file.name, &self.file.text, span, "named here")
        })
    }
}

/// The forms that a part can have.
fn forms(part: &str) -> String {
    let import = if part == "model" { ", or `model: hf(\"config.json\")`" } else { "" };
    format!("write `{part}: ( .. )`, or `{part}: file(\"{part}.ron\")`{import}")
}
