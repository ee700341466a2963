pub(crate) mod commands;
pub(crate) mod demo;
pub(crate) mod launch;
pub(crate) mod process_ids;
