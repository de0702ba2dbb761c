//! `dualweave doctor`: what of CUDA this computer has.

use serde::Serialize;

use super::{Verdict, output};
use crate::error::Result;
use crate::runtime::cuda::compile::OLDEST;
use crate::runtime::cuda::inventory::{CONNECTIONS, CONNECTIONS_VARIABLE, Inventory};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Found<'a> {
    can_run: bool,
    driver: Option<String>,
    libraries: Vec<FoundLibrary>,
    gpus: Vec<FoundGpu<'a>>,
}

#[derive(Serialize)]
struct FoundLibrary {
    name: String,
    found: bool,
}

#[derive(Serialize)]
struct FoundGpu<'a> {
    name: &'a str,
    compute_capability: String,
    sms: u32,
    memory_bytes: u64,
    reaches: Vec<usize>,
}

/// Looks, and says what it found. That plans cannot run here on GPUs is the verdict `No`.
pub fn run(args: &Args) -> Result<Verdict> {
    let inventory = Inventory::take()?;
    let text = if args.json { json(&inventory)? } else { said(&inventory) };
    output::print(&text)?;
    Ok(if inventory.is_enough() { Verdict::Yes } else { Verdict::No })
}

/// 90 as `9.0`; 13000 as `13.0`.
fn version(number: u32, major: u32) -> String {
    format!("{}.{}", number / major, number % major / if major == 1000 { 10 } else { 1 })
}

fn reached(reaches: &[bool]) -> Vec<usize> {
    reaches.iter().enumerate().filter(|&(_, &reaches)| reaches).map(|(gpu, _)| gpu).collect()
}

fn json(inventory: &Inventory) -> Result<String> {
    let libraries = inventory.libraries.iter();
    let gpus = inventory.gpus.iter().enumerate();
    output::to_json(&Found {
        can_run: inventory.is_enough(),
        driver: inventory.driver.map(|driver| version(driver, 1000)),
        libraries: libraries
            .map(|&(library, found)| FoundLibrary { name: format!("lib{}", library.name()), found })
            .collect(),
        gpus: gpus
            .map(|(number, gpu)| FoundGpu {
                name: &gpu.name,
                compute_capability: version(gpu.capability, 10),
                sms: gpu.sms,
                memory_bytes: gpu.memory,
                reaches: reached(&gpu.reaches).into_iter().filter(|&peer| peer != number).collect(),
            })
            .collect(),
    })
}

fn said(inventory: &Inventory) -> String {
    let mut text = String::from("Libraries\n");
    for (library, found) in &inventory.libraries {
        let found = if *found { "found" } else { "missing" };
        text += &format!("  {found:7}  lib{}: {}\n", library.name(), library.about());
    }
    text += "\nGPUs\n";
    match inventory.driver {
        None => text += "  none: there is no driver\n",
        Some(driver) => {
            text += &format!("  the driver speaks CUDA {}\n", version(driver, 1000));
            for (number, gpu) in inventory.gpus.iter().enumerate() {
                let gib = gpu.memory as f64 / f64::from(1 << 30);
                text += &format!(
                    "  {number}: {}, compute capability {}, {} SMs, {gib:.0} GiB",
                    gpu.name,
                    version(gpu.capability, 10),
                    gpu.sms
                );
                let peers: Vec<String> = reached(&gpu.reaches)
                    .into_iter()
                    .filter(|&peer| peer != number)
                    .map(|peer| peer.to_string())
                    .collect();
                if !peers.is_empty() {
                    text += &format!(", reaches GPU {}", peers.join(", "));
                }
                text += "\n";
            }
        }
    }
    let connections = inventory.connections.as_deref().map_or_else(
        || format!("not set; `dualweave run` sets it to {CONNECTIONS}"),
        |set| format!("{set}; streams overlap best with {CONNECTIONS}"),
    );
    text += &format!("\n{CONNECTIONS_VARIABLE} is {connections}.\n");
    text += &match inventory.is_enough() {
        true => "Plans can be run on GPUs here: `dualweave run PLAN --backend cuda`.\n".to_owned(),
        false => format!(
            "Plans cannot be run on GPUs here: that takes all libraries, and a GPU of compute capability {} or more.\n",
            version(OLDEST, 10)
        ),
    };
    text
}
