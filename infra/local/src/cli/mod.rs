//! The terminal's side of `twin`: the command line, the commands, and the start of the supervisor.

pub(crate) mod arguments;
pub(crate) mod commands;
pub(crate) mod connection;
pub(crate) mod demo;
pub(crate) mod launch;
pub(crate) mod process_ids;
pub(crate) mod terminal;
