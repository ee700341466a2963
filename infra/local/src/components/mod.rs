pub(crate) mod component;
pub(crate) mod control_plane;
pub(crate) mod front;
pub(crate) mod ministack;
pub(crate) mod node;
