//! The supervisor, the detached process behind `twin up`: `server` answers the control socket, `up` carries out a
//! `twin up`, and `lifecycle` keeps the components running.

pub(crate) mod kill;
pub(crate) mod lifecycle;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod reaper;
pub(crate) mod server;
pub(crate) mod up;
