//! What faults of the network cost.

use mica_fetcher::{Outcome, ServeOptions, Server, listen};

use super::common::proxy::{Fault, Proxy};
use super::common::{Bench, chain, noise};
use super::{ALL, CHUNK, assert_reads, borrowed, publish, pull, try_pull};

fn served(bench: &Bench) -> Server {
    let listener = listen("127.0.0.1:0").unwrap();
    Server::spawn(listener, &bench.path("registry"), ServeOptions::default()).unwrap()
}

#[test]
fn faults_of_the_network_cost_no_more_than_what_is_new() {
    let faults: [&[Fault]; 5] = [
        &[Fault::Cut(10_000), Fault::Refuse, Fault::Cut(CHUNK + 5)],
        &[Fault::IgnoreRange],
        &[Fault::Flip(3)],
        &[Fault::WrongRange],
        &[Fault::Stall(50_000)],
    ];
    for faults in faults {
        let mut bench = Bench::new();
        let names: Vec<_> = (0..ALL).map(|i| noise(&i.to_string(), CHUNK)).collect();
        publish(&mut bench, "v0", &names);
        let mut new = names;
        new[30] = noise("one more", CHUNK);
        new.splice(10..12, (0..4).map(|i| noise(&format!("more {i}"), CHUNK)));
        let manifest = publish(&mut bench, "v1", &new);
        let (server, cache) = (served(&bench), bench.cache());
        drop(pull(&bench, "A@v0", &cache));
        // Before them come the manifest and the chunk table.
        let faults = [Fault::Pass, Fault::Pass].into_iter().chain(faults.iter().cloned());
        let proxy = Proxy::new(server.address(), faults.collect());
        let pulled =
            try_pull(&proxy.url(), "A@v1", &cache).unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(borrowed(&pulled), 37 * CHUNK as u64);
        assert!(pulled.fetched_bytes() <= manifest.layers[0].size);
        assert_reads(&cache, &manifest);
        assert_eq!(
            (cache.verify(false).unwrap().damage, cache.disk_use().unwrap().parts),
            (vec![], 0)
        );
    }
}

#[test]
fn wrong_bytes_for_good_are_an_error_and_what_came_is_kept() {
    let mut bench = Bench::new();
    let names: Vec<_> = (0..ALL).map(|i| noise(&i.to_string(), CHUNK)).collect();
    publish(&mut bench, "v0", &names);
    let mut new = names;
    for at in [5, 15, 25] {
        new[at] = noise(&format!("new at {at}"), CHUNK);
    }
    let manifest = publish(&mut bench, "v1", &new);
    let (server, cache) = (served(&bench), bench.cache());
    drop(pull(&bench, "A@v0", &cache));
    let mut faults = vec![Fault::Pass; 4];
    faults.extend([Fault::Flip(9), Fault::Flip(9), Fault::Flip(9)]);
    let proxy = Proxy::new(server.address(), faults);
    let error = try_pull(&proxy.url(), "A@v1", &cache).unwrap_err();
    assert!(
        chain(&error).contains("wrong bytes") || chain(&error).contains("blake3:"),
        "{}",
        chain(&error)
    );
    assert!(!cache.holds(&manifest.layers[0]));
    let pulled = try_pull(&server.url(), "A@v1", &cache).unwrap();
    let Outcome::Borrowed { bytes, resumed, .. } = pulled.layers[0] else { panic!("not borrowed") };
    assert_eq!((bytes, resumed), (CHUNK as u64, 2 * CHUNK as u64));
    assert_reads(&cache, &manifest);
}
