//! How wide the kernel reads the arguments of system calls.
//!
//! A filter sees 64 bits of every argument, and the kernel throws the upper half of many away: `socket(40 + 2^32, …)` is
//! `socket(40, …)` to it. So a comparison must look at what the kernel looks at, or a rule is walked around by a bit that
//! nobody reads. Taken from the prototypes of `include/linux/syscalls.h`.

/// How much of an argument has a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// 16 bits: modes of files.
    Half,
    /// 32 bits: descriptors, numbers of users and processes, most flags.
    Word,
    /// All of it: addresses, sizes, offsets.
    Long,
}

/// The width of an argument of the system call of this name.
pub(super) fn width(name: &str, argument: u8) -> Width {
    let has = |table: &[(&[u8], &str)]| {
        table
            .iter()
            .filter(|(arguments, _)| arguments.contains(&argument))
            .any(|(_, names)| names.split_whitespace().any(|known| known == name))
    };
    match (has(MODES), has(WORDS)) {
        (true, _) => Width::Half,
        (false, true) => Width::Word,
        (false, false) => Width::Long,
    }
}

/// Arguments that are modes, by their positions.
const MODES: &[(&[u8], &str)] = &[
    (&[1], "chmod creat fchmod mkdir mknod"),
    (&[2], "fchmodat fchmodat2 mkdirat mknodat mq_open open"),
    (&[3], "openat"),
];

/// Arguments of 32 bits or fewer, by their positions.
const WORDS: &[(&[u8], &str)] = &[
    (
        &[0],
        "accept alarm arch_prctl clock_adjtime clock_getres clock_gettime clock_settime clone close dup \
        epoll_create epoll_create1 eventfd exit exit_group fchdir fdatasync fgetxattr flistxattr \
        fremovexattr fstat fstatfs fsync ftruncate futimesat get_robust_list getgroups getitimer \
        getpeername getpgid getrlimit getrusage getsid getsockname inotify_init1 io_setup io_uring_setup \
        iopl keyctl memfd_secret migrate_pages mlockall modify_ldt mq_getsetattr mq_notify \
        mq_timedreceive openat2 personality pkey_free prctl pread64 process_vm_readv process_vm_writev \
        pselect6 pwrite64 read readahead rt_sigaction rt_sigprocmask sched_get_priority_max \
        sched_get_priority_min sched_getparam sched_getscheduler sched_rr_get_interval sched_setparam \
        select set_mempolicy setfsgid setfsuid setgid setgroups setitimer setrlimit setuid signalfd \
        syncfs sysfs timer_create timer_delete timer_getoverrun timer_gettime timerfd_gettime umask \
        userfaultfd ustat write",
    ),
    (
        &[1],
        "access chmod creat delete_module fsopen memfd_create mkdir pipe2 ppoll setdomainname sethostname \
        swapon symlinkat umount2",
    ),
    (
        &[0, 1],
        "clock_nanosleep dup2 eventfd2 fallocate fanotify_init fchmod fcntl flock getpriority \
        inotify_rm_watch ioctl ioprio_get kexec_file_load kill landlock_restrict_self listen msgctl \
        msgget pidfd_open prlimit64 process_mrelease rt_sigqueueinfo sched_getaffinity sched_setaffinity \
        sched_setscheduler seccomp sendfile setns setpgid setregid setreuid shmctl shutdown \
        timer_settime timerfd_create timerfd_settime tkill",
    ),
    (
        &[2],
        "getrandom ioperm landlock_create_ruleset lsm_list_modules madvise map_shadow_stack mlock2 msync \
        readlink",
    ),
    (
        &[0, 2],
        "bind bpf connect epoll_pwait2 faccessat fchmodat finit_module fspick getdents getdents64 \
        getxattrat inotify_add_watch listxattrat lseek mkdirat mount_setattr open_by_handle_at open_tree \
        quotactl recvmsg removexattrat renameat sched_setattr semop semtimedop sendmsg setxattrat shmat \
        shmget syslog unlinkat wait4",
    ),
    (&[1, 2], "chown lchown mknod mq_open open poll"),
    (
        &[0, 1, 2],
        "close_range dup3 epoll_ctl fchown fsmount getsockopt ioprio_set kcmp membarrier pidfd_getfd \
        quotactl_fd reboot rt_tgsigqueueinfo semctl semget setpriority setresgid setresuid socket \
        socketpair tgkill",
    ),
    (&[3], "listmount pkey_mprotect request_key statmount"),
    (
        &[0, 3],
        "accept4 cachestat fadvise64 lsm_get_self_attr mq_timedsend msgsnd newfstatat readlinkat recvfrom \
        signalfd4 sync_file_range utimensat vmsplice",
    ),
    (&[0, 1, 3], "io_uring_register landlock_add_rule pidfd_send_signal tee waitid"),
    (&[2, 3], "futex_wake"),
    (
        &[0, 2, 3],
        "epoll_pwait epoll_wait faccessat2 fchmodat2 lsm_set_self_attr mknodat openat recvmmsg \
        sched_getattr sendmmsg statx",
    ),
    (&[1, 2, 3], "futex_requeue perf_event_open rseq"),
    (&[0, 1, 2, 3], "io_uring_enter"),
    (&[4], "add_key lsetxattr setxattr"),
    (&[0, 4], "execveat fsetxattr msgrcv name_to_handle_at"),
    (&[0, 1, 4], "fsconfig"),
    (&[0, 2, 4], "linkat move_mount renameat2"),
    (&[1, 2, 4], "futex_waitv"),
    (&[0, 1, 2, 4], "setsockopt"),
    (&[0, 3, 4], "process_madvise"),
    (&[2, 3, 4], "mmap"),
    (&[0, 2, 3, 4], "fchownat"),
    (&[0, 1, 2, 3, 4], "fanotify_mark"),
    (&[5], "mbind preadv2 pwritev2"),
    (&[0, 5], "move_pages"),
    (&[0, 2, 5], "copy_file_range splice"),
    (&[1, 2, 5], "futex"),
    (&[3, 5], "futex_wait"),
    (&[0, 3, 5], "sendto"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::numbers::number;

    #[test]
    fn every_call_is_known_and_stands_in_one_place() {
        let mut seen = std::collections::BTreeSet::new();
        for name in WORDS.iter().flat_map(|(_, names)| names.split_whitespace()) {
            assert!(seen.insert(name), "{name} twice");
            // Some are of other architectures.
            assert!(number(name).is_some() || cfg!(not(target_arch = "x86_64")), "{name}");
        }
    }

    #[test]
    fn widths_as_the_kernel_has_them() {
        for (name, argument, expected) in [
            ("socket", 0, Width::Word),
            ("ioctl", 1, Width::Word),
            ("ioctl", 2, Width::Long),
            ("personality", 0, Width::Word),
            ("clone", 0, Width::Word),
            ("unshare", 0, Width::Long),
            ("chmod", 1, Width::Half),
            ("openat", 3, Width::Half),
            ("write", 2, Width::Long),
            ("no_such_call", 0, Width::Long),
        ] {
            assert_eq!(width(name, argument), expected, "{name} {argument}");
        }
    }
}
