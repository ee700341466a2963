//! Numbers of the request: bounds, defaults and lengths that more than one place needs.

/// Longest `model_id`, in characters.
pub const MAX_MODEL_ID_CHARACTERS: usize = 256;

/// Bounds of the numbers in a request.
pub mod bounds {
    use std::ops::RangeInclusive;

    /// Pods.
    pub const NUM_NODES: RangeInclusive<u32> = 1..=1000;
    /// GPUs a pod.
    pub const GPUS_PER_NODE: RangeInclusive<u32> = 0..=64;
    /// CPUs a pod.
    pub const CPUS_PER_NODE: RangeInclusive<u32> = 1..=1024;
    /// GiB a pod.
    pub const MEMORY_PER_NODE_GB: RangeInclusive<u32> = 1..=65_536;
    /// Failures that a run may survive.
    pub const MAX_RESTARTS: RangeInclusive<u32> = 0..=100;
    /// A minute to a year.
    pub const MAX_RUNTIME_SECONDS: RangeInclusive<u32> = 60..=31_536_000;
}

/// What numbers are when a request does not say.
pub mod defaults {
    /// Pods.
    pub const NUM_NODES: u32 = 1;
    /// GPUs a pod.
    pub const GPUS_PER_NODE: u32 = 1;
    /// CPUs a pod.
    pub const CPUS_PER_NODE: u32 = 32;
    /// GiB a pod.
    pub const MEMORY_PER_NODE_GB: u32 = 256;
}
