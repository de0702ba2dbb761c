//! Which GPU each rank of this process runs on.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::cluster::{Cluster, Launcher};
use crate::runtime::cuda::{Device, device};

/// One GPU for each rank, neighbours on the same one if there are fewer.
///
/// # Errors
/// If there are fewer than are wanted, or one cannot be opened.
pub fn open(ranks: usize, wanted: Option<usize>) -> Result<Vec<Arc<Device>>> {
    let there = device::count()?;
    let gpus = wanted.unwrap_or(there).min(ranks);
    if gpus == 0 || gpus > there {
        return Err(Error::new(format!("{} GPUs are wanted; this computer has {there}", wanted.unwrap_or(1))));
    }
    let devices = (0..gpus).map(Device::open).collect::<Result<Vec<_>>>()?;
    Ok((0..ranks).map(|rank| Arc::clone(&devices[rank * gpus / ranks])).collect())
}

/// The GPU of a process that has one rank.
///
/// # Errors
/// If there are not as many processes as ranks, or it has no such GPU.
pub fn open_own(cluster: &Cluster, ranks: usize) -> Result<Arc<Device>> {
    let seat = cluster.seat();
    if seat.processes as usize != ranks {
        return Err(Error::new(format!(
            "the plan has {ranks} ranks, for a process each; there are {}",
            seat.processes
        )));
    }
    let there = device::count()?;
    // srun can give each process a GPU, which is then the only one that it sees.
    let bound = seat.launcher == Launcher::Slurm && there == 1 && std::env::var_os("CUDA_VISIBLE_DEVICES").is_some();
    let ordinal = if bound { 0 } else { seat.local as usize };
    if ordinal >= there {
        let (variable, per_host) = match seat.launcher {
            Launcher::Torchrun => ("LOCAL_RANK", "`--nproc-per-node`"),
            Launcher::Slurm => ("SLURM_LOCALID", "`--ntasks-per-node`"),
        };
        return Err(Error::new(format!("{variable} is {ordinal}, but this process sees {there} GPUs"))
            .help(format!("a host can have as many processes as GPUs ({per_host}, CUDA_VISIBLE_DEVICES)")));
    }
    Device::open(ordinal)
}
