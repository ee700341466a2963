pub(crate) mod arguments;
pub(crate) mod commands;
pub(crate) mod connection;
pub(crate) mod demo;
pub(crate) mod launch;
pub(crate) mod process_ids;
pub(crate) mod terminal;
