//! Build outputs into reproducible squashfs images and a manifest.
