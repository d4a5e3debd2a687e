//! The supervisor of a job, and the node's daemon.
