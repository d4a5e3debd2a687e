//! What to do about an error, by its kind: the crates know, this asks the right one.

use std::error::Error;

use mica_agent::{MountStackError, NamespaceError, NetworkError, ServeMountError, StackError};
use mica_fetcher::registry::RegistryError;
use mica_fetcher::{
    CacheError, DistrustError, LoadError, PatchPushError, PullError, PushError, ServeError,
};
use mica_launcher::LaunchError;
use mica_mounter::{MountError, OpenError};
use mica_packer::build::BuildError;
use mica_squashfs::read::OpenFault;

/// The hint of the first of an error's causes that has one.
pub(crate) fn for_chain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(cause) = next {
        let hint = for_cause(cause);
        if hint.is_some() {
            return hint;
        }
        next = cause.source();
    }
    None
}

/// The different shapes in which the crates give their hints.
trait Hint {
    fn hint(&self) -> Option<String>;
}

/// Errors that give hints themselves, and those for which it is done below.
macro_rules! hints {
    (own: $($own:ty),*; below: $($below:ty),*) => {
        $(impl Hint for $own {
            fn hint(&self) -> Option<String> {
                <$own>::hint(self).map(Into::into)
            }
        })*

        /// The hint of this one cause, if it has one.
        pub(crate) fn for_cause(cause: &(dyn Error + 'static)) -> Option<String> {
            None$(.or_else(|| cause.downcast_ref::<$own>().and_then(Hint::hint)))*
                $(.or_else(|| cause.downcast_ref::<$below>().and_then(Hint::hint)))*
        }
    };
}

hints!(
    own: RegistryError, PullError, PushError, PatchPushError, CacheError, DistrustError, LoadError,
        ServeError, LaunchError, NetworkError;
    below: BuildError, NamespaceError, MountError, OpenError, ServeMountError, MountStackError, StackError,
        std::io::Error
);

impl Hint for std::io::Error {
    fn hint(&self) -> Option<String> {
        let again = self.raw_os_error() == Some(rustix::io::Errno::AGAIN.raw_os_error());
        again.then(|| {
            "the limit of processes and threads is reached: see `ulimit -u`, and pids.max of the control group"
                .into()
        })
    }
}

impl Hint for BuildError {
    fn hint(&self) -> Option<String> {
        let trusted = "if you trust this repository: mica pack --unconfined";
        Some(match self {
            Self::Confine { .. } => format!("{trusted}; it runs actions with all your rights"),
            Self::Outside { .. } => format!("{trusted}; it takes inputs from wherever links lead"),
            Self::Deadline { .. } => "mica pack --action-timeout SECONDS gives it longer".into(),
            _ => return None,
        })
    }
}

impl Hint for NamespaceError {
    fn hint(&self) -> Option<String> {
        Some(self.hint())
    }
}

impl Hint for MountError {
    fn hint(&self) -> Option<String> {
        use std::io::ErrorKind;
        Some(match self {
            Self::Device(error) => match error.kind() {
                ErrorKind::NotFound => "load the kernel's FUSE module; as root: modprobe fuse".into(),
                _ => "let this user open it; as root: chmod 666 /dev/fuse, as every distribution with udev does".into(),
            },
            Self::NotPermitted { .. } => {
                "install fusermount3 (apt install fuse3), or use `mica run`, which needs no helper".into()
            }
            _ => return None,
        })
    }
}

const EMFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();

impl Hint for OpenError {
    fn hint(&self) -> Option<String> {
        use std::io::ErrorKind;
        match &self.fault {
            OpenFault::Io(error) if error.raw_os_error() == Some(EMFILE) => {
                return Some("raise the limit of open files: `ulimit -Hn` says how far".into());
            }
            OpenFault::Io(error) if error.kind() != ErrorKind::UnexpectedEof => return None,
            _ => {}
        }
        Some("the file is damaged, cut short, or no squashfs image at all; `mica image info` looks at it".into())
    }
}

impl Hint for StackError {
    fn hint(&self) -> Option<String> {
        self.hint().or_else(|| self.image().and_then(Hint::hint))
    }
}

// Their own chains leave out what they pass on.
impl Hint for ServeMountError {
    fn hint(&self) -> Option<String> {
        for_chain(self.inner())
    }
}

impl Hint for MountStackError {
    fn hint(&self) -> Option<String> {
        for_chain(self.inner())
    }
}
