//! The seeds of the fuzz targets, cut off and changed in places: no parser panics, or takes long.

#[path = "../../graph/fuzz/hold.rs"]
mod hold;

#[test]
fn seeds_and_what_is_near_them_hold() {
    hold::hold(env!("CARGO_MANIFEST_DIR"), &mica_fetcher::fuzz::TARGETS);
}
