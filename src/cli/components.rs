//! Files of measured components: what a layer with experts takes, by component and phase. `overlap` orders them, `tune` makes a profile of
//! them, and `import --format kineto` writes them.

use std::collections::BTreeMap;
use std::path::Path;

use super::output;
use crate::error::{Error, Result};
use crate::ir::{Component, Phase};
use crate::units::Nanos;

/// Reads a file of components.
///
/// # Errors
/// If it cannot be read, has a line that is none, or no component that takes time.
pub fn read(file: &Path) -> Result<BTreeMap<(Component, Phase), Nanos>> {
    let (name, text) = (file.display().to_string(), output::read(file)?);
    let mut durations = BTreeMap::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let place = at..at + line.trim_end().len();
        at += line.len();
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') || content == "component,phase,ms" {
            continue;
        }
        let refuse = |message: &str, help: &str| {
            Err(Error::new(message).help(help).at(&name, &text, place.clone(), "this line"))
        };
        let Ok([component, phase, ms]) = <[&str; 3]>::try_from(content.split(',').map(str::trim).collect::<Vec<_>>())
        else {
            return refuse("a line has three fields", "write `component,phase,ms`, say `attn,F,4.36`");
        };
        let component = match component {
            "attn" | "attention" => Component::Attention,
            "dispatch" => Component::Dispatch,
            "mlp" => Component::Mlp,
            "combine" => Component::Combine,
            _ => return refuse("there is no such component", "use attn, dispatch, mlp or combine"),
        };
        let exchange = matches!(component, Component::Dispatch | Component::Combine);
        let phase = match (phase, exchange) {
            ("F", _) => Phase::F,
            ("B" | "I", _) => Phase::I,
            ("W", false) => Phase::W,
            ("W", true) => return refuse("an exchange has no weights", "use F or B for dispatch and combine"),
            _ => return refuse("there is no such phase", "use F, I or W; or F and B"),
        };
        let Some(duration) = ms.parse::<f64>().ok().filter(|ms| (0.0..=1e6).contains(ms)) else {
            return refuse("this is no duration", "give milliseconds, from 0 to 1000000");
        };
        if durations.contains_key(&(component, phase)) {
            return refuse("this component and phase was given before", "keep one of the lines");
        }
        durations.insert((component, phase), Nanos::from_secs(duration / 1e3));
    }
    if durations.values().all(|&duration| duration == Nanos::ZERO) {
        return Err(
            Error::new(format!("`{name}` has no component that takes time")).help("write lines such as `attn,F,4.36`")
        );
    }
    Ok(durations)
}
