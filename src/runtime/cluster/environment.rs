//! What a launcher says to each process that it starts: torchrun's variables, and those of Slurm's `srun`.

use crate::error::{Error, Result};

/// Who has started the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// torchrun, or whatever sets the variables that it does.
    Torchrun,
    /// Slurm's srun.
    Slurm,
}

/// What a process is told: which one it is, and where the first one can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Number of this process, from 0.
    pub process: u32,
    /// All of them; at least 2.
    pub processes: u32,
    /// Number of this process on its host.
    pub local: u32,
    /// Host of process 0.
    pub host: String,
    /// The port that process 0 listens on.
    pub port: u16,
    /// Who says so.
    pub launcher: Launcher,
}

/// Ports that a job of Slurm gets, by its number: below those that systems give to outgoing connections.
const FIRST_PORT: u64 = 10_000;
const PORTS: u64 = 20_000;

/// Reads the variables, torchrun's before Slurm's. `None`: this process is alone.
///
/// # Errors
/// If a variable is missing, or is not what it has to be; names it and its value.
pub fn seat(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Seat>> {
    let variables = Variables(&|name| variable(name).filter(|value| !value.trim().is_empty()));
    if variables.has("WORLD_SIZE") {
        return variables.torchrun();
    }
    if variables.has("SLURM_PROCID") && variables.has("SLURM_NTASKS") {
        return variables.slurm();
    }
    Ok(None)
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn has(&self, name: &str) -> bool {
        self.0(name).is_some()
    }

    fn torchrun(&self) -> Result<Option<Seat>> {
        let beside = "WORLD_SIZE";
        let Some((process, processes)) = self.place(("RANK", beside))? else { return Ok(None) };
        let port: u16 = self.number("MASTER_PORT", beside)?;
        // torchrun itself listens on its port, as long as its processes run.
        let taken = self.0("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|said| said.eq_ignore_ascii_case("true"));
        Ok(Some(Seat {
            process,
            processes,
            local: self.number("LOCAL_RANK", beside)?,
            host: self.text("MASTER_ADDR", beside)?,
            port: if taken { next_port(port) } else { port },
            launcher: Launcher::Torchrun,
        }))
    }

    fn slurm(&self) -> Result<Option<Seat>> {
        let beside = "SLURM_NTASKS";
        let Some((process, processes)) = self.place(("SLURM_PROCID", beside))? else { return Ok(None) };
        Ok(Some(Seat {
            process,
            processes,
            local: self.number("SLURM_LOCALID", beside)?,
            host: self.slurm_host()?,
            port: self.slurm_port()?,
            launcher: Launcher::Slurm,
        }))
    }

    /// Number of this process, and of all; none if it is alone.
    fn place(&self, (process, processes): (&str, &str)) -> Result<Option<(u32, u32)>> {
        let all: u32 = self.number(processes, process)?;
        if all == 0 {
            return Err(Error::new(format!("{processes} is 0; it is how many processes there are")));
        }
        if all == 1 {
            return Ok(None);
        }
        let number: u32 = self.number(process, processes)?;
        if number >= all {
            return Err(Error::new(format!("{process} is {number}, but {processes} says that there are {all}"))
                .help(format!("{process} counts from 0 to {}", all - 1)));
        }
        Ok(Some((number, all)))
    }

    /// Process 0 runs on the first host of the step, which need not be the one where `srun` was called.
    fn slurm_host(&self) -> Result<String> {
        if let Some(host) = self.0("MASTER_ADDR") {
            return Ok(host);
        }
        for name in ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"] {
            if let Some(list) = self.0(name) {
                return first_host(&list).ok_or_else(|| Error::new(format!("{name} is `{list}`, which names no host")));
            }
        }
        self.0("SLURM_LAUNCH_NODE_IPADDR").ok_or_else(|| {
            Error::new("SLURM_NTASKS says that there are several processes, but nothing says where the first one is")
                .help("set MASTER_ADDR to its host")
        })
    }

    fn slurm_port(&self) -> Result<u16> {
        if self.has("MASTER_PORT") {
            return self.number("MASTER_PORT", "SLURM_NTASKS");
        }
        let job: u64 = self.number("SLURM_JOB_ID", "SLURM_NTASKS")?;
        // Steps of a job run beside each other.
        let step: u64 = if self.has("SLURM_STEP_ID") { self.number("SLURM_STEP_ID", "SLURM_NTASKS")? } else { 0 };
        let port = FIRST_PORT + job.wrapping_mul(37).wrapping_add(step) % PORTS;
        Ok(u16::try_from(port).unwrap_or(u16::MAX))
    }

    fn text(&self, name: &str, beside: &str) -> Result<String> {
        self.0(name).ok_or_else(|| {
            Error::new(format!("{beside} is set, but {name} is not"))
                .help(format!("start all processes with torchrun or srun; or, to run in one process, unset {beside}"))
        })
    }

    fn number<N: std::str::FromStr>(&self, name: &str, beside: &str) -> Result<N> {
        let text = self.text(name, beside)?;
        text.trim().parse().map_err(|_| {
            Error::new(format!("{name} is `{text}`, which is no number from 0 on that is small enough"))
                .help(format!("start all processes with torchrun or srun; or, to run in one process, unset {beside}"))
        })
    }
}

/// The port behind another one, if there is one.
fn next_port(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(port - 1)
}

/// The first host of a list in Slurm's form: `node[07-12,20],login` begins with `node07`.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    while let Some(at) = rest.find(['[', ',']) {
        host += &rest[..at];
        if rest[at..].starts_with(',') {
            rest = "";
            break;
        }
        let (inside, behind) = rest[at + 1..].split_once(']')?;
        host += inside.split(['-', ',']).next().filter(|first| !first.is_empty())?;
        rest = behind;
    }
    host += rest;
    Some(host).filter(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Option<Seat>> {
        seat(|name| set.iter().find(|(other, _)| *other == name).map(|&(_, value)| value.to_owned()))
    }

    const TORCHRUN: [(&str, &str); 5] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "10.0.0.7"),
        ("MASTER_PORT", "29500"),
    ];
    const SLURM: [(&str, &str); 5] = [
        ("SLURM_PROCID", "5"),
        ("SLURM_NTASKS", "8"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_JOB_ID", "123456"),
        ("SLURM_JOB_NODELIST", "gpu[017-020,033]"),
    ];

    fn with<'a>(set: &[(&'a str, &'a str)], change: (&'a str, &'a str)) -> Vec<(&'a str, &'a str)> {
        let kept = set.iter().copied().filter(|(name, _)| *name != change.0);
        kept.chain([change]).collect()
    }

    fn refused(set: &[(&str, &str)], said: &str) {
        let error = read(set).expect_err(said);
        assert!(error.message().contains(said), "{error} does not say {said}");
    }

    #[test]
    fn a_process_that_nobody_says_anything_to_is_alone() {
        assert_eq!(read(&[]).expect("nothing is wrong"), None);
        assert_eq!(read(&with(&TORCHRUN, ("WORLD_SIZE", "1"))).expect("nothing is wrong"), None);
        assert_eq!(read(&with(&SLURM, ("SLURM_NTASKS", "1"))).expect("nothing is wrong"), None);
        // An allocation without a step.
        assert_eq!(read(&[("SLURM_NTASKS", "8")]).expect("nothing is wrong"), None);
    }

    #[test]
    fn torchrun_is_understood() {
        let seat = Seat {
            process: 3,
            processes: 8,
            local: 1,
            host: "10.0.0.7".to_owned(),
            port: 29500,
            launcher: Launcher::Torchrun,
        };
        assert_eq!(read(&TORCHRUN).expect("a seat"), Some(seat.clone()));
        let listening = with(&TORCHRUN, ("TORCHELASTIC_USE_AGENT_STORE", "True"));
        assert_eq!(read(&listening).expect("a seat"), Some(Seat { port: 29501, ..seat.clone() }));
        let last = with(&listening, ("MASTER_PORT", "65535"));
        assert_eq!(read(&last).expect("a seat"), Some(Seat { port: 65534, ..seat.clone() }));
        // Under srun, torchrun is nearer.
        let both: Vec<_> = SLURM.iter().chain(&TORCHRUN).copied().collect();
        assert_eq!(read(&both).expect("a seat"), Some(seat));
    }

    #[test]
    fn slurm_is_understood() {
        let found = read(&SLURM).expect("a seat").expect("several");
        assert_eq!((found.process, found.processes, found.local), (5, 8, 1));
        assert_eq!((found.host.as_str(), found.launcher), ("gpu017", Launcher::Slurm));
        assert!((10_000..30_000).contains(&found.port));
        let of = |change| read(&with(&SLURM, change)).expect("a seat").expect("several");
        assert_eq!(of(("SLURM_JOB_ID", "123456")).port, found.port);
        assert_ne!(of(("SLURM_STEP_ID", "1")).port, found.port);
        assert_eq!(of(("MASTER_PORT", "4000")).port, 4000);
        assert_eq!(of(("MASTER_ADDR", "head")).host, "head");
        assert_eq!(of(("SLURM_STEP_NODELIST", "gpu033")).host, "gpu033");
        let without = [SLURM[0], SLURM[1], SLURM[2], SLURM[3], ("SLURM_LAUNCH_NODE_IPADDR", "10.1.2.3")];
        assert_eq!(read(&without).expect("a seat").expect("several").host, "10.1.2.3");
        refused(&SLURM[..4], "where the first one is");
    }

    #[test]
    fn lists_of_hosts_begin_with_one() {
        let cases = [
            ("one", Some("one")),
            ("a,b", Some("a")),
            ("gpu[3]", Some("gpu3")),
            ("gpu[03-12,20]-ib,login", Some("gpu03-ib")),
            ("rack[1-2]n[004-009]", Some("rack1n004")),
            ("x-1,y[1-2]", Some("x-1")),
            ("gpu[", None),
            ("gpu[]", None),
            ("gpu[,1]", None),
            (",b", None),
            ("", None),
        ];
        for (list, first) in cases {
            assert_eq!(first_host(list).as_deref(), first, "{list}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value() {
        for value in ["x", "-1", "1.5", "4294967296", "8,"] {
            refused(&with(&TORCHRUN, ("RANK", value)), &format!("RANK is `{value}`"));
            refused(&with(&TORCHRUN, ("WORLD_SIZE", value)), &format!("WORLD_SIZE is `{value}`"));
            refused(&with(&SLURM, ("SLURM_LOCALID", value)), &format!("SLURM_LOCALID is `{value}`"));
        }
        refused(&with(&TORCHRUN, ("MASTER_PORT", "65536")), "MASTER_PORT is `65536`");
        refused(&with(&TORCHRUN, ("RANK", "8")), "RANK is 8, but WORLD_SIZE says that there are 8");
        refused(&with(&TORCHRUN, ("WORLD_SIZE", "0")), "WORLD_SIZE is 0");
        refused(&with(&SLURM, ("SLURM_PROCID", "9")), "SLURM_PROCID is 9, but SLURM_NTASKS");
        refused(&with(&SLURM, ("SLURM_JOB_NODELIST", "gpu[")), "SLURM_JOB_NODELIST is `gpu[`");
        for (name, _) in TORCHRUN.iter().filter(|(name, _)| *name != "WORLD_SIZE") {
            refused(&with(&TORCHRUN, (name, " ")), &format!("WORLD_SIZE is set, but {name} is not"));
        }
    }
}
