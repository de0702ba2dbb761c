//! Processes that run one plan: they find each other, and all end with an error that names the one that is gone. Each process is this
//! test's program again, as the test `child`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use dualweave::error::Result;
use dualweave::runtime::cluster::{Cluster, seat};

/// What says to a process that it is a child, and what it is to do.
const ROLE: &str = "DUALWEAVE_TEST_ROLE";
/// More rounds than there is time for.
const ENDLESS: &[(&str, &str)] = &[("ROUNDS", "1000000")];

/// What a child does.
fn act(role: &str) -> Result<()> {
    let seat = seat(|name| std::env::var(name).ok())?.expect("several processes");
    let me = seat.process;
    let seed = if role == "other seed" { "7" } else { "0" };
    let terms = vec![("plan".to_owned(), "abc".to_owned()), ("seed".to_owned(), seed.to_owned())];
    let limit = std::env::var("LIMIT_MS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let cluster = Cluster::join(seat, format!("rank {me}"), terms, Duration::from_millis(limit))?;
    cluster.watch_over(Duration::from_millis(200), |failure| {
        eprintln!("error: {failure:?}");
        std::process::exit(2);
    });
    let run = || {
        for round in 0..std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3) {
            let brought = vec![me as u8; (me as usize * 1000 + round as usize) % 5000];
            let all = cluster.share(brought, "the round")?;
            for (process, bytes) in all.iter().enumerate() {
                assert_eq!(bytes.len(), (process * 1000 + round as usize) % 5000);
                assert!(bytes.iter().all(|&byte| usize::from(byte) == process));
            }
            assert_eq!(all.len(), cluster.all().len());
            let told = cluster.broadcast((me == 0).then(|| vec![round as u8; 3]))?;
            assert_eq!(told, [round as u8; 3]);
            if round == 1 {
                println!("ready");
                if role == "fails" {
                    return Err(dualweave::error::Error::new("no memory left").help("buy some"));
                }
                if role == "stuck" {
                    let alarm = cluster.alarm();
                    alarm.at("Compute", "F(0,0)".to_owned());
                    alarm.at("From(1)", "RecvGrad(0,0)".to_owned());
                }
                if role == "absent" || role == "stuck" {
                    std::thread::sleep(Duration::from_secs(3600));
                }
            }
        }
        Ok(())
    };
    run().map_err(|error| cluster.fail(error))?;
    cluster.leave()
}

/// Not a test of its own: what the other tests start.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let code = match act(&role) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {error:?}");
            2
        }
    };
    std::process::exit(code);
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

fn start(process: u32, processes: u32, port: u16, role: &str, set: &[(&str, &str)]) -> Process {
    let mut child = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "child", "--nocapture"])
        .env(ROLE, role)
        .env("RANK", process.to_string())
        .env("LOCAL_RANK", process.to_string())
        .env("WORLD_SIZE", processes.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .envs(set.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the test starts itself");
    let out = BufReader::new(child.stdout.take().expect("piped"));
    Process { child, out }
}

impl Process {
    /// Waits until it has done two rounds.
    fn wait_ready(&mut self) {
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert!(self.out.read_line(&mut line).expect("its output") > 0, "it ends before it is ready");
        }
    }

    /// Its exit code, and what it says.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("it ends");
        let mut said = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        (status.code(), said)
    }
}

fn all(processes: u32, roles: &[(u32, &str)], set: &[(&str, &str)]) -> Vec<Process> {
    let port = free_port();
    let role = |process| roles.iter().find(|(of, _)| *of == process).map_or("", |&(_, role)| role);
    // The first one comes last, so that the others look for it.
    let mut started: Vec<_> =
        (0..processes).rev().map(|process| start(process, processes, port, role(process), set)).collect();
    started.reverse();
    started
}

fn assert_refused(process: Process, said: &[&str]) {
    let (code, text) = process.end();
    assert_eq!(code, Some(2), "{text}");
    said.iter().for_each(|said| assert!(text.contains(said), "`{text}` does not say `{said}`"));
}

#[test]
fn they_meet_and_leave() {
    for processes in [2, 5] {
        for process in all(processes, &[], &[("ROUNDS", "40")]) {
            assert_eq!(process.end(), (Some(0), String::new()));
        }
    }
}

#[test]
fn who_is_killed_is_named_by_all_others() {
    for victim in 0..3 {
        let mut processes = all(3, &[(victim as u32, "absent")], ENDLESS);
        processes[victim].wait_ready();
        let mut killed = processes.remove(victim);
        let named = format!("process {victim} (rank {victim}; host ");
        let pid = format!("pid {}) is gone", killed.child.id());
        killed.child.kill().expect("it runs");
        killed.child.wait().expect("it ends");
        processes.into_iter().for_each(|process| assert_refused(process, &[&named, &pid]));
    }
}

#[test]
fn who_fails_is_named_with_its_reason() {
    for failing in 0..3 {
        let mut processes = all(3, &[(failing as u32, "fails")], ENDLESS);
        assert_refused(processes.remove(failing), &["error: no memory left (help: buy some)"]);
        let named = format!("process {failing} (rank {failing}; host ");
        processes.into_iter().for_each(|process| assert_refused(process, &[&named, "no memory left (help: buy some)"]));
    }
}

#[cfg(unix)]
#[test]
fn who_hangs_is_given_up() {
    for hanging in 0..3 {
        let mut processes = all(3, &[(hanging as u32, "absent")], &[("ROUNDS", "1000000"), ("LIMIT_MS", "1500")]);
        processes[hanging].wait_ready();
        let mut stopped = processes.remove(hanging);
        let stop = Command::new("kill").args(["-STOP", &stopped.child.id().to_string()]).status();
        assert!(stop.expect("kill is there").success());
        // It may have been late for a round before it was stopped.
        let named = format!("process {hanging} (rank {hanging}; host ");
        let ends: Vec<_> = processes.into_iter().map(Process::end).collect();
        assert!(ends.iter().all(|(code, said)| *code == Some(2) && said.contains(&named)), "{hanging}: {ends:?}");
        stopped.child.kill().expect("it is there");
        stopped.child.wait().expect("it ends");
    }
}

#[test]
fn who_does_not_come_is_given_up() {
    let mut processes = all(3, &[(2, "absent")], &[("ROUNDS", "1000000"), ("LIMIT_MS", "1000")]);
    let mut absent = processes.pop().expect("three");
    for process in processes {
        assert_refused(process, &["process 2 (rank 2; host ", "did not come to the round within 1 s"]);
    }
    absent.child.kill().expect("it sleeps");
    absent.child.wait().expect("it ends");
}

/// A process whose thread waits in a call that does not return ends itself, and says what it was at.
#[test]
fn who_comes_to_no_end_with_something_ends_itself() {
    for stuck in 0..2 {
        let set = [("ROUNDS", "1000000"), ("LIMIT_MS", "20000")];
        let short = [("ROUNDS", "1000000"), ("LIMIT_MS", "1000")];
        let port = free_port();
        let role = |process| if process == stuck { ("stuck", &short) } else { ("", &set) };
        let processes: Vec<_> =
            (0..3).map(|process| start(process, 3, port, role(process).0, role(process).1)).collect();
        let named = format!("process {stuck} (rank {stuck}; host ");
        for process in processes {
            let at = "nothing has gone on for 2 s, with Compute at F(0,0), From(1) at RecvGrad(0,0)";
            assert_refused(process, &[&named, at]);
        }
    }
}

#[test]
fn who_is_not_started_is_named() {
    let port = free_port();
    let set = [("LIMIT_MS", "800")];
    let processes = [start(0, 4, port, "", &set), start(2, 4, port, "", &set)];
    let said = format!("processes 1, 3 of 4 did not come to 127.0.0.1:{port} within 0 s");
    processes.into_iter().for_each(|process| assert_refused(process, &[&said]));
    // Without process 0 there is nobody to say so.
    let said = format!("process 1 cannot reach process 0 at 127.0.0.1:{port} within 0 s");
    assert_refused(start(1, 2, port, "", &set), &[&said]);
    let (host, set) = ([("MASTER_ADDR", "no-such-host.invalid")], [("LIMIT_MS", "100")]);
    let said = "process 1 cannot reach process 0 at no-such-host.invalid";
    assert_refused(start(1, 2, port, "", &[host, set].concat()), &[said]);
}

#[test]
fn who_is_to_do_something_else_is_refused() {
    let processes = all(3, &[(1, "other seed")], &[]);
    for process in processes {
        assert_refused(process, &["process 1 (rank 1; host ", "has the seed 7, but process 0 (rank 0; host ", "has 0"]);
    }
    let port = free_port();
    let processes = [start(0, 2, port, "", &[]), start(1, 3, port, "", &[])];
    for process in processes {
        assert_refused(process, &["is one of 3 processes, but process 0 is one of 2"]);
    }
    let port = free_port();
    let processes = [start(0, 3, port, "", &[]), start(1, 3, port, "", &[]), start(1, 3, port, "", &[])];
    processes.into_iter().for_each(|process| assert_refused(process, &["two processes are number 1"]));
}

#[test]
fn strangers_disturb_nobody() {
    let port = free_port();
    let first = start(0, 2, port, "", &[]);
    let stranger = |bytes: &[u8]| {
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.write_all(bytes).expect("it listens");
        stream
    };
    let strangers = [stranger(b""), stranger(b"GET / HTTP/1.1\r\n\r\n"), stranger(&[0xff; 64])];
    let second = start(1, 2, port, "", &[]);
    for process in [first, second] {
        assert_eq!(process.end(), (Some(0), String::new()));
    }
    drop(strangers);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let said = format!("process 0 cannot listen at 127.0.0.1:{port}");
    assert_refused(start(0, 2, port, "", &[]), &[&said, "MASTER_PORT"]);
    // Who listens there instead says nothing that process 1 understands.
    let silent = start(1, 2, port, "", &[("LIMIT_MS", "100")]);
    assert_refused(silent, &["has not said within 0 s that all 2 processes have come"]);
}
