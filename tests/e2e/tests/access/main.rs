//! Into a container that runs, and out of it: programs, terminals, files, logs.

mod attach;
mod copy;
mod exec;
mod hostile;
mod log_writer;
mod logs;
mod roles;
mod terminal;
mod users;
