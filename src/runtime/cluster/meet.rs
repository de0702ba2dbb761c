//! How processes find each other, and see that they are to do the same.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::alarm::with_help;
use super::environment::{Launcher, Seat};
use super::frame::{Failed, Frame, Hello, MAGIC, Who};
use crate::error::{Error, Result};

/// How often a process tries to reach process 0, and that one looks for more.
const PAUSE: Duration = Duration::from_millis(20);
/// How much longer than process 0 the others wait, so that it is the one who says what is wrong.
const LONGER: Duration = Duration::from_secs(2);

/// How long those that come late are still told why there is no run.
const MOMENT: Duration = Duration::from_millis(500);

/// Who there is, and the connections to them.
type Met = (Vec<Who>, BTreeMap<u32, TcpStream>);

/// As process 0: waits for the others.
pub fn as_first(seat: &Seat, who: Who, terms: &[(String, String)], limit: Duration) -> Result<Met> {
    let start = Instant::now();
    let listener = listen(seat)?;
    let (sender, greetings) = mpsc::channel();
    let mut all: BTreeMap<u32, Who> = BTreeMap::from([(0, who)]);
    let mut streams: BTreeMap<u32, TcpStream> = BTreeMap::new();
    let next = || {
        // A stranger that says nothing holds up nobody.
        while let Ok((stream, _)) = listener.accept() {
            let sender = sender.clone();
            thread::spawn(move || {
                if let Ok(greeting) = greet(stream, limit) {
                    // Nobody listens any more once all have come.
                    let _ = sender.send(greeting);
                }
            });
        }
        greetings.recv_timeout(PAUSE).ok()
    };
    // Those that have come are told that there will be no run, and so are those that come in the next moment.
    let turn_away = |streams: &BTreeMap<u32, TcpStream>, error: Error| {
        streams.values().for_each(|stream| tell(stream, &error));
        let start = Instant::now();
        while start.elapsed() < MOMENT {
            if let Some((_, stream)) = next() {
                tell(&stream, &error);
            }
        }
        error
    };
    while all.len() < seat.processes as usize {
        if let Some((hello, stream)) = next() {
            if let Some(error) = refusal(seat, &all, &hello, terms) {
                tell(&stream, &error);
                return Err(turn_away(&streams, error));
            }
            streams.insert(hello.process, stream);
            all.insert(hello.process, hello.who);
        }
        if start.elapsed() > limit {
            let missing = (0..seat.processes).filter(|process| !all.contains_key(process));
            let error = Error::new(format!(
                "{} of {} did not come to {}:{} within {} s",
                numbers(missing),
                seat.processes,
                seat.host,
                seat.port,
                limit.as_secs()
            ));
            let help = match seat.launcher {
                Launcher::Torchrun => "start all with torchrun; see what the missing ones say",
                Launcher::Slurm => "start all with srun; see what the missing ones say",
            };
            return Err(turn_away(&streams, error.help(format!("{help}; `--time-out` sets how long to wait"))));
        }
    }
    let all: Vec<Who> = all.into_values().collect();
    let welcome = Frame::Welcome(all.clone());
    for (process, stream) in &streams {
        let said = welcome.write(&mut &*stream);
        said.map_err(|error| turn_away(&streams, Error::new(format!("process {process} is gone: {error}"))))?;
    }
    Ok((all, streams))
}

/// As another one: reaches process 0, and waits until all have come.
pub fn as_other(seat: &Seat, who: Who, terms: Vec<(String, String)>, limit: Duration) -> Result<Met> {
    let mut stream = reach(seat, limit)?;
    let (me, first) = (seat.process, format!("process 0 at {}:{}", seat.host, seat.port));
    let lost = |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("has not said within {} s that all {} processes have come", limit.as_secs(), seat.processes)
            }
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                "is gone before all processes have come".to_owned()
            }
            _ => format!("cannot be understood: {error}"),
        };
        Error::new(format!("process {me}: {first} {why}")).help("see what process 0 says, and what else uses that port")
    };
    let hello = Hello { process: me, processes: seat.processes, who, terms };
    let patience = Some(limit + LONGER);
    stream.set_read_timeout(patience).and_then(|()| stream.set_write_timeout(patience)).map_err(lost)?;
    stream.write_all(MAGIC).and_then(|()| Frame::Hello(hello).write(&mut stream)).map_err(lost)?;
    match Frame::read(&mut stream).map_err(lost)? {
        Frame::Welcome(all) if all.len() == seat.processes as usize => Ok((all, BTreeMap::from([(0, stream)]))),
        Frame::Failed(Failed { message, help }) => {
            Err(with_help(Error::new(format!("process 0 has ended the run: {message}")), help.as_deref()))
        }
        _ => Err(Error::new(format!("{first} says what was not asked for"))),
    }
}

/// Where the others are to come: the address that they are told, if it is this computer's, or else any of its.
fn listen(seat: &Seat) -> Result<TcpListener> {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), seat.port);
    let own: Vec<SocketAddr> = addresses(seat).unwrap_or_default();
    let bound = own.into_iter().chain([any]).map(TcpListener::bind).fold(None, |found, next| match found {
        Some(Ok(_)) => found,
        // An address in use says more than one that is another computer's.
        Some(Err(error)) if next.is_err() => Some(Err(error)),
        _ => Some(next),
    });
    let bound = bound.unwrap_or_else(|| TcpListener::bind(any));
    let listener = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.map_err(|error| {
        Error::new(format!("process 0 cannot listen at {}:{}: {error}", seat.host, seat.port))
            .help("set MASTER_PORT (torchrun: `--master-port`) to a port that is free there")
    })
}

fn addresses(seat: &Seat) -> io::Result<Vec<SocketAddr>> {
    (seat.host.as_str(), seat.port).to_socket_addrs().map(Iterator::collect)
}

/// A connection to process 0, which may not listen yet.
fn reach(seat: &Seat, limit: Duration) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        let tried = addresses(seat).and_then(|addresses| {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in addresses {
                match TcpStream::connect_timeout(&address, limit) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        match tried {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > limit => {
                return Err(Error::new(format!(
                    "process {} cannot reach process 0 at {}:{} within {} s: {error}",
                    seat.process,
                    seat.host,
                    seat.port,
                    limit.as_secs()
                ))
                .help("see what process 0 says; MASTER_ADDR and MASTER_PORT say where it is"));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// What a process says first, if it is one of ours.
fn greet(mut stream: TcpStream, limit: Duration) -> io::Result<(Hello, TcpStream)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    match Frame::read(&mut stream)? {
        Frame::Hello(hello) => Ok((hello, stream)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Why a process cannot take part, if it cannot.
fn refusal(seat: &Seat, there: &BTreeMap<u32, Who>, hello: &Hello, terms: &[(String, String)]) -> Option<Error> {
    let Hello { process, processes, who, .. } = hello;
    let other = format!("process {process} ({}; host {}, pid {})", who.name, who.host, who.pid);
    if *processes != seat.processes {
        return Some(Error::new(format!(
            "{other} is one of {processes} processes, but process 0 is one of {}",
            seat.processes
        )));
    }
    if *process >= seat.processes {
        return Some(Error::new(format!("{other} is no number below {}", seat.processes)));
    }
    if let Some(earlier) = there.get(process) {
        return Some(Error::new(format!(
            "two processes are number {process}: {} on host {}, pid {}, and {} on host {}, pid {}",
            earlier.name, earlier.host, earlier.pid, who.name, who.host, who.pid
        )));
    }
    let first =
        there.get(&0).map_or_else(String::new, |who| format!(" ({}; host {}, pid {})", who.name, who.host, who.pid));
    let value = |of: &[(String, String)], name: &str| {
        of.iter().find(|(other, _)| other == name).map_or_else(|| "nothing".to_owned(), |(_, value)| value.clone())
    };
    let names = terms.iter().chain(&hello.terms).map(|(name, _)| name);
    let differs = names.into_iter().find(|name| value(terms, name) != value(&hello.terms, name))?;
    let (here, there) = (value(terms, differs), value(&hello.terms, differs));
    Some(
        Error::new(format!("{other} has the {differs} {there}, but process 0{first} has {here}"))
            .help("start all processes with the same plan and the same options"),
    )
}

/// Tells a process that there will be no run.
fn tell(stream: &TcpStream, error: &Error) {
    let failed = Failed { message: error.message().to_owned(), help: error.help_text().map(str::to_owned) };
    // Who is gone need not be told.
    let _ = Frame::Failed(failed).write(&mut &*stream);
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

/// `process 3`, or `processes 1, 3`.
fn numbers(of: impl Iterator<Item = u32>) -> String {
    let all: Vec<String> = of.map(|number| number.to_string()).collect();
    format!("process{} {}", if all.len() == 1 { "" } else { "es" }, all.join(", "))
}
