//! Files that survive a crash, locks that end with their holder, and opening where others may write.
//!
//! - [`Folder`] is an open directory. Whatever it opens, makes, replaces or removes is one of its own entries: no
//!   symbolic link is followed, nothing but a regular file is read, modes are exact whatever the umask is.
//! - [`Folder::replace`] is the one way to change a file that another process reads: write, fsync, rename, fsync the folder.
//! - [`Lock`] is an exclusive or shared flock(2) with a deadline; the error of a wait that ended says who holds it.
//! - [`Scratch`] is a folder for a time, removed whatever becomes of its process.
//! - [`trusted`] tells whether anybody but the caller and root can change what a path names.
//!
//! The only crate of ours that renames into place.

mod error;
mod folder;
mod lock;
mod remove;
mod scratch;
pub mod trusted;
mod walk;

pub use error::{FileError, Named, found, is_full};
pub use folder::{Folder, MAX_NAME, open_regular, read_bounded};
pub use lock::{Lock, interrupted_by};
pub use remove::remove_tree;
pub use scratch::Scratch;
pub use walk::{Found, walk};
