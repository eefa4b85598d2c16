//! The guardian: holds the ends that the container writes to, moves what arrives into memory, and replaces a worker that has
//! died. It touches no file, so that no disk can stop it.

use std::{
    ffi::CStr,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use crate::{
    format::GapReason,
    shared::Shared,
    system::{self, Forked},
    worker::Birth,
};

/// A worker that takes nothing this long while a ring is full stands still: what arrives is thrown away and counted, for the
/// container must not stand still with it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Told to end, it waits this long for output that is still on its way, and never longer than the second one. The shim kills
/// after some ten seconds.
const SILENCE: Duration = Duration::from_secs(1);
const DRAIN: Duration = Duration::from_secs(5);
/// For the worker to write what there is at the end.
const FINISH: Duration = Duration::from_secs(3);
/// A worker whose line has ended needs a moment more to be dead.
const BURIAL: Duration = Duration::from_millis(5);
/// A worker that ended sooner than this is not replaced at once.
const SHORT_LIFE: Duration = Duration::from_millis(20);

pub(crate) const NAME: &CStr = c"log-guardian";

pub(crate) enum Next {
    /// This process is a new worker, with its line to the guardian.
    Work(UnixStream, Birth),
    Exit,
}

struct Guardian<'a> {
    shared: Shared,
    sources: &'a [OwnedFd; 2],
    open: [bool; 2],
    /// The ring is full, since then.
    full_since: [Option<Instant>; 2],
    /// What arrives is thrown away.
    throwing: [bool; 2],
    worker: Option<Worker>,
    /// Workers whose lines have ended.
    dying: Vec<i32>,
    told: Option<Instant>,
    heard: Instant,
    /// Nothing more is taken, and the worker has until then for what there is.
    finish_by: Option<Instant>,
}

struct Worker {
    pid: i32,
    line: UnixStream,
    since: Instant,
}

enum Role {
    Guardian(Worker),
    Worker(UnixStream),
}

pub(crate) fn guard(
    shared: Shared,
    sources: &[OwnedFd; 2],
    signal: &OwnedFd,
    mut birth: Birth,
) -> io::Result<Next> {
    system::call_process(NAME);
    let now = Instant::now();
    let mut it = Guardian {
        shared,
        sources,
        open: [true; 2],
        full_since: [None; 2],
        throwing: [false; 2],
        worker: None,
        dying: vec![],
        told: None,
        heard: now,
        finish_by: None,
    };
    if birth == Birth::AfterGuardian {
        for stream in 0..2 {
            if !shared.recover(stream) {
                shared.tell_gap(stream, GapReason::Writer);
            }
            // It may have been told to throw away by one that stood still.
            it.throwing[stream] = shared.has_thrown(stream);
        }
    }
    let mut not_before = now;
    loop {
        let now = Instant::now();
        it.dying.retain(|pid| !system::bury(*pid));
        if it.worker.is_none() && now >= not_before {
            match start() {
                Ok(Role::Guardian(worker)) => it.worker = Some(worker),
                Ok(Role::Worker(line)) => return Ok(Next::Work(line, birth)),
                Err(_) => not_before = now + SHORT_LIFE * 5,
            }
            birth = Birth::AfterWorker;
        }
        if it.finish_by.is_none() && it.is_over(now) {
            it.finish(now);
        }
        if it.finish_by.is_some_and(|it| now >= it) {
            return Ok(Next::Exit);
        }
        let wait = it.wait(now, not_before);
        let reads: [bool; 2] = std::array::from_fn(|stream| it.reads(stream));
        let line = it.worker.as_ref().map(|it| it.line.as_fd());
        let source = |stream: usize| reads[stream].then(|| sources[stream].as_fd());
        let signal = it.told.is_none().then(|| signal.as_fd());
        let ready = system::readable([source(0), source(1), line, signal], wait);
        let [stdout, stderr, line, signal] = ready;
        for (stream, _) in [stdout, stderr].iter().enumerate().filter(|it| *it.1) {
            it.take(stream);
        }
        if line && it.worker_is_gone() {
            if shared.finished().load(SeqCst) {
                return Ok(Next::Exit);
            }
            let lived = it.worker.take().map_or(Duration::ZERO, |worker| {
                it.dying.push(worker.pid);
                worker.since.elapsed()
            });
            let rest = if lived < SHORT_LIFE {
                SHORT_LIFE
            } else {
                Duration::ZERO
            };
            not_before = Instant::now() + rest;
        }
        if signal {
            it.told = Some(Instant::now());
            it.heard = Instant::now();
        }
    }
}

fn start() -> io::Result<Role> {
    let (own, other) = UnixStream::pair()?;
    own.set_nonblocking(true)?;
    other.set_nonblocking(true)?;
    Ok(match system::fork_process()? {
        Forked::Child => Role::Worker(other),
        Forked::Parent(pid) => Role::Guardian(Worker {
            pid,
            line: own,
            since: Instant::now(),
        }),
    })
}

impl Guardian<'_> {
    fn reads(&self, stream: usize) -> bool {
        self.open[stream] && (self.throwing[stream] || self.shared.room(stream) > 0)
    }

    fn is_over(&self, now: Instant) -> bool {
        let told = self
            .told
            .is_some_and(|told| now >= told + DRAIN || now.duration_since(self.heard) >= SILENCE);
        !self.open.contains(&true) || told
    }

    /// How long nothing has to be done unless something arrives.
    fn wait(&mut self, now: Instant, not_before: Instant) -> Option<Duration> {
        let mut until: Vec<Instant> = Vec::with_capacity(7);
        until.extend((!self.dying.is_empty()).then_some(now + BURIAL));
        until.extend(self.worker.is_none().then_some(not_before));
        if let Some(finish_by) = self.finish_by {
            until.push(finish_by);
        } else {
            for stream in 0..2 {
                self.judge(stream, now);
                until.extend(self.full_since[stream].map(|it| it + PATIENCE));
            }
            until.extend(self.told.map(|it| (it + DRAIN).min(self.heard + SILENCE)));
        }
        let wait = until.into_iter().min();
        wait.map(|it| it.saturating_duration_since(now))
    }

    /// Whether the stream is thrown away from here on.
    fn judge(&mut self, stream: usize, now: Instant) {
        if self.throwing[stream] {
            self.shared.guardian_waits().store(true, SeqCst);
            if self.shared.is_empty(stream) {
                self.shared.tell_gap(stream, GapReason::Disk);
                self.throwing[stream] = false;
                self.wake_worker();
            }
            return;
        }
        if self.shared.room(stream) > 0 || !self.open[stream] {
            self.full_since[stream] = None;
            return;
        }
        self.shared.guardian_waits().store(true, SeqCst);
        // It may have made room before it saw the flag.
        if self.shared.room(stream) > 0 {
            self.full_since[stream] = None;
            return;
        }
        let since = *self.full_since[stream].get_or_insert(now);
        if now >= since + PATIENCE {
            self.full_since[stream] = None;
            self.throwing[stream] = true;
        }
    }

    fn take(&mut self, stream: usize) {
        let source = self.sources[stream].as_fd();
        let read = if self.throwing[stream] {
            let mut bytes = [0; 16 << 10];
            system::read_into(source, &mut bytes)
                .inspect(|length| self.shared.throw_away(stream, &bytes[..*length]))
        } else {
            let held = system::held_by(source);
            self.shared
                .put(stream, held, |room| system::read_into(source, room))
        };
        match read {
            Ok(0) => {
                self.open[stream] = false;
                self.shared.end(stream);
            }
            Ok(_) => self.heard = Instant::now(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.open[stream] = false;
                self.shared.end(stream);
            }
        }
        self.wake_worker();
    }

    fn wake_worker(&mut self) {
        if let Some(worker) = &mut self.worker
            && self.shared.worker_waits().swap(false, SeqCst)
        {
            // A full line wakes as well, and a dead worker is seen by the end of the line.
            let _ = worker.line.write(&[0]);
        }
    }

    fn worker_is_gone(&mut self) -> bool {
        let Some(worker) = &mut self.worker else {
            return false;
        };
        let mut bytes = [0; 64];
        match worker.line.read(&mut bytes) {
            Ok(length) => length == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Has the worker write what there is, and end.
    fn finish(&mut self, now: Instant) {
        self.finish_by = Some(now + FINISH);
        for stream in 0..2 {
            if self.throwing[stream] {
                self.shared.tell_gap(stream, GapReason::Disk);
            }
            self.open[stream] = false;
            self.throwing[stream] = false;
            self.full_since[stream] = None;
        }
        self.shared.over().store(true, SeqCst);
        self.shared.worker_waits().store(true, SeqCst);
        self.wake_worker();
    }
}
