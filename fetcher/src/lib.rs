//! Images by digest, verified, from anywhere into the cache.
