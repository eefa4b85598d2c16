//! Places at which a test ends the process as a crash would. Only the feature `crash-points` has them.

pub(crate) use berth_daemon::crash::around;
