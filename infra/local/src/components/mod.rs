pub(crate) mod component;
pub(crate) mod control_plane;
pub(crate) mod ministack;
