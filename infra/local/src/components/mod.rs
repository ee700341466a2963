//! The components of the twin. `component` names them and says what each one depends on; the other files say how each
//! one is run. The supervisor starts and stops them.

pub(crate) mod component;
pub(crate) mod control_plane;
pub(crate) mod front;
pub(crate) mod ministack;
pub(crate) mod node;
