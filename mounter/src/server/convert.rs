//! Between FUSE's types and the tree's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, INodeNo, TimeOrNow};
use rustix::io::Errno;

use crate::ids::{Attr, Time};
use crate::kind::Kind;
use crate::tree::SetTime;

pub(super) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(time.nanos.into());
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// The time a request carries. fuser 0.18 turns (seconds, nanos) before 1970 into
/// `1970 - |seconds| - nanos`; this undoes it.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    let TimeOrNow::SpecificTime(time) = time else { return SetTime::Now };
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    SetTime::At(match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { seconds: seconds(after), nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { seconds: -seconds(before), nanos: before.subsec_nanos() }
        }
    })
}

/// Device numbers as the kernel packs them in 32 bits.
fn pack_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The other way, as mknod(2) wants them.
pub(super) fn unpack_device(device: u32) -> u64 {
    let major = (device & 0xfff00) >> 8;
    let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
    rustix::fs::makedev(major, minor)
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: attr.kind.fuse(),
        perm: attr.mode as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: pack_device(attr.rdev),
        blksize: 4096,
        flags: 0,
    }
}

/// Attributes of which only number and kind count.
pub(super) fn bare_attr(ino: u64, kind: Kind) -> FileAttr {
    let zero = Time { seconds: 0, nanos: 0 };
    file_attr(&Attr {
        ino,
        kind,
        mode: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: (0, 0),
        size: 0,
        blocks: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive() {
        for device in [(0, 0), (1, 3), (8, 1), (259, 70_000), (4095, 0xf_ffff)] {
            let packed = pack_device(device);
            assert_eq!(unpack_device(packed), rustix::fs::makedev(device.0, device.1));
        }
    }

    #[test]
    fn times_before_1970_survive() {
        // What fuser makes of (-2 s, 500 ms), which is 1.5 s before 1970.
        let sent = UNIX_EPOCH - Duration::new(2, 500_000_000);
        let SetTime::At(time) = set_time(TimeOrNow::SpecificTime(sent)) else { panic!() };
        assert_eq!(time, Time { seconds: -2, nanos: 500_000_000 });
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::from_millis(1500));
    }
}
