//! The squashfs 4.0 and XAR header formats, both directions.

pub mod codec;
pub mod format;
pub mod xar;
