//! Writes numbered lines to stdout at a steady pace, each by a write of its own, and beside it the same to `/dev/null`. At the
//! end it says to stderr how long its writes took. Arguments: seconds, bytes per second, bytes of a line.

use std::{
    env,
    fs::File,
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

#[derive(Clone, Copy)]
struct Pace {
    lines: u64,
    interval: Duration,
    length: usize,
}

fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1).map(|it| it.parse::<u64>());
    let mut next = || arguments.next().and_then(Result::ok).unwrap_or(1).max(1);
    let (seconds, rate, length) = (next(), next(), next());
    let per_second = (rate / length).max(1);
    let pace = Pace {
        lines: seconds * per_second,
        interval: Duration::from_secs(1) / per_second as u32,
        length: length as usize,
    };
    let control =
        thread::spawn(move || write(pace, File::options().write(true).open("/dev/null")?));
    // Without the buffer of the standard library, which would put lines together.
    let own = write(pace, File::options().write(true).open("/proc/self/fd/1")?)?;
    let control = control
        .join()
        .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
    eprintln!("{}", told("log", own));
    eprintln!("{}", told("null", control));
    Ok(())
}

/// How long each write took, in nanoseconds.
fn write(pace: Pace, mut to: impl Write) -> io::Result<Vec<u64>> {
    let mut took = Vec::with_capacity(pace.lines as usize);
    let begun = Instant::now();
    let mut line = String::with_capacity(pace.length);
    for number in 0..pace.lines {
        let due = begun + pace.interval * number as u32;
        let early = due.saturating_duration_since(Instant::now());
        // It catches up in bursts of a millisecond: a sleep takes longer than it is told.
        if early > Duration::from_millis(1) {
            thread::sleep(early);
        }
        line.clear();
        line += &format!("line {number:010} ");
        while line.len() + 1 < pace.length {
            line.push('x');
        }
        line.push('\n');
        let before = Instant::now();
        to.write_all(line.as_bytes())?;
        took.push(before.elapsed().as_nanos() as u64);
    }
    Ok(took)
}

fn told(name: &str, mut took: Vec<u64>) -> String {
    took.sort_unstable();
    let share = |parts: usize| took[(took.len() - 1) * parts / 1000] / 1000;
    format!(
        "stalls to={name} writes={} p50_us={} p99_us={} p999_us={} max_us={}",
        took.len(),
        share(500),
        share(990),
        share(999),
        share(1000)
    )
}
