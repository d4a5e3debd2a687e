//! A stack of images as one directory tree, by FUSE.
