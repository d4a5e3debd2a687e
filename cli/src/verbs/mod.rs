//! One file per verb: its flags and what it does.

pub(crate) mod cache;
pub(crate) mod demo;
pub(crate) mod df;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod mount;
pub(crate) mod pack;
pub(crate) mod plan;
pub(crate) mod prune;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod rm;
pub(crate) mod rm_image;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod stop;
pub(crate) mod umount;
pub(crate) mod wait;
