//! Places at which a test ends the process as a crash would. Only the feature `crash-points` has them.

/// A place by its name, as `create/prepare/before`. It ends the process, without a chance to do anything more, when
/// `BERTH_CRASH_AT` has this name, and notes that it was passed in the file of `BERTH_CRASH_TRACE`.
#[cfg(feature = "crash-points")]
pub fn point(name: impl FnOnce() -> String) {
    use std::{io::Write as _, sync::LazyLock};

    static AT: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("BERTH_CRASH_AT").ok());
    static TRACE: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("BERTH_CRASH_TRACE").ok());
    if AT.is_none() && TRACE.is_none() {
        return;
    }
    let name = name();
    if let Some(path) = TRACE.as_ref() {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path);
        // One write: points are passed on many threads.
        let _ = file.and_then(|mut it| it.write_all(format!("{name}\n").as_bytes()));
    }
    if AT.as_deref() == Some(name.as_str()) {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(feature = "crash-points"))]
pub fn point(_name: impl FnOnce() -> String) {}

/// The place before what `work` does, and the one behind it.
pub async fn around<T>(name: &str, work: impl Future<Output = T>) -> T {
    point(|| format!("{name}/before"));
    let done = work.await;
    point(|| format!("{name}/after"));
    done
}
