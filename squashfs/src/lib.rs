//! The squashfs 4.0 and XAR header formats, both directions.
