//! A job specification into a confined process.
