//! Into a container that runs, and out of it: programs, terminals, files, logs.

mod attach;
mod copy;
mod exec;
mod log_writer;
mod logs;
mod terminal;
mod users;
