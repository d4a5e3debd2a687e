use super::*;

const WRITTEN: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Lz4, Compression::Xz, Compression::Zstd];

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| b"the quick brown fox "[i * i % 17]).collect()
}

/// Bytes without pattern (xorshift).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[test]
fn every_block_comes_back() {
    let mut out = Vec::new();
    let mut back = Vec::new();
    for compression in WRITTEN {
        let mut compressor = Compressor::new(compression, None, 131_072).unwrap();
        let mut decompressor = Decompressor::new(compression).unwrap();
        for len in [1, 31, 4096, 8192, 131_072] {
            let input = text(len);
            if compressor.compress(&input, &mut out).unwrap() {
                decompressor.decompress(&out, 131_072, &mut back).unwrap();
                assert_eq!(back, input, "{compression} {len}");
            } else {
                assert!(compression == Compression::None || len < 100, "{compression} {len}");
            }
        }
        assert!(!compressor.compress(&noise(10_000), &mut out).unwrap(), "{compression}");
    }
}

#[test]
fn output_does_not_depend_on_earlier_blocks() {
    for compression in &WRITTEN[1..] {
        let fresh = |input: &[u8]| {
            let mut out = Vec::new();
            Compressor::new(*compression, None, 131_072)
                .unwrap()
                .compress(input, &mut out)
                .unwrap();
            out
        };
        let mut used = Compressor::new(*compression, None, 131_072).unwrap();
        let mut out = Vec::new();
        for input in [text(131_072), noise(5000), text(8192), text(100), text(131_071)] {
            used.compress(&input, &mut out).unwrap();
            assert_eq!(out, fresh(&input), "{compression}");
        }
    }
}

#[test]
fn refuses_more_than_allowed_and_cut_blocks() {
    let mut out = Vec::new();
    let mut back = Vec::new();
    for compression in &WRITTEN[1..] {
        let mut compressor = Compressor::new(*compression, None, 131_072).unwrap();
        assert!(compressor.compress(&text(50_000), &mut out).unwrap());
        let mut decompressor = Decompressor::new(*compression).unwrap();
        assert!(decompressor.decompress(&out, 49_999, &mut back).is_err(), "{compression}");
        assert!(back.is_empty());
        let cut = &out[..out.len() / 2];
        assert!(decompressor.decompress(cut, 131_072, &mut back).is_err(), "{compression}");
        // The context is good for the next block all the same.
        decompressor.decompress(&out, 50_000, &mut back).unwrap();
        assert_eq!(back, text(50_000), "{compression}");
    }
}

#[test]
fn levels_are_checked() {
    assert!(matches!(
        Compressor::new(Compression::Zstd, Some(23), 4096),
        Err(CodecError::Level { level: 23, .. })
    ));
    assert!(Compressor::new(Compression::Lz4, Some(1), 4096).is_err());
    assert!(Compressor::new(Compression::Lzo, None, 4096).is_err());
    assert_eq!("zstd".parse::<Compression>().unwrap(), Compression::Zstd);
    assert!("brotli".parse::<Compression>().is_err());
}

#[test]
fn options_come_back() {
    for (compression, level) in
        [(Compression::Gzip, 5), (Compression::Lz4, 0), (Compression::Zstd, 3)]
    {
        let options = CompressorOptions::to_record(compression, level).unwrap();
        assert_eq!(CompressorOptions::decode(compression, &options.encode()).unwrap(), options);
    }
    assert_eq!(CompressorOptions::to_record(Compression::Zstd, 15), None);
    assert_eq!(CompressorOptions::to_record(Compression::Gzip, 9), None);
}

#[test]
fn libraries_are_named_with_the_version_that_is_built() {
    let lock = include_str!("../../../Cargo.lock");
    for compression in [Compression::Gzip, Compression::Lz4, Compression::Xz] {
        let library = compression.library();
        let (name, version) = library.rsplit_once('-').unwrap();
        let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        assert!(lock.contains(&entry), "{library} is not what Cargo.lock says");
    }
}
