//! The library without the command line: publishes files as layers, serves them, pulls them into a cache.
//!
//! ```text
//! transfer push REGISTRY NAME@VERSION FILE…     each file becomes a layer, with FILE.chunks if it is there
//! transfer patch REGISTRY NAME@NEW NAME@OLD CACHE   adds the patches from one to the other
//! transfer serve FOLDER ADDRESS
//! transfer pull REGISTRY NAME[@VERSION] CACHE
//! transfer layers REGISTRY NAME[@VERSION]       where the images are, below the registry's address
//! transfer hash FILE…                           hashes on one thread
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::collections::HashMap;
use std::error::Error;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use mica_fetcher::registry::{OpenOptions, open, open_writable};
use mica_fetcher::{
    Cache, Outcome, PatchBases, PullOptions, PushOptions, PushedPatch, ServeOptions,
};
use mica_graph::{Blob, Digest, Layer, Manifest, PackageRef};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match &words[..] {
        ["push", registry, reference, files @ ..] => push(registry, reference, files),
        ["patch", registry, new, old, cache] => patch(registry, new, old, cache),
        ["serve", folder, address] => serve(folder, address),
        ["pull", registry, reference, cache] => pull(registry, reference, cache),
        ["layers", registry, reference] => layers(registry, reference),
        ["hash", files @ ..] => hash(files),
        _ => Err("see the head of transfer.rs".into()),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  caused by: {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}

type Done = Result<(), Box<dyn Error>>;

fn push(registry: &str, reference: &str, files: &[&str]) -> Done {
    let PackageRef { name, selector } = reference.parse()?;
    let version = selector.ok_or("a version is needed")?;
    let mut paths: HashMap<Digest, PathBuf> = HashMap::new();
    let mut blob = |path: &Path| -> Result<Blob, Box<dyn Error>> {
        let mut hasher = blake3::Hasher::new();
        let size = std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
        let digest = hasher.finalize().into();
        paths.insert(digest, path.to_owned());
        Ok(Blob { digest, size })
    };
    let mut layers = Vec::new();
    for file in files {
        let image = blob(Path::new(file))?;
        let table = format!("{file}.chunks");
        let chunks = Path::new(&table).exists().then(|| blob(Path::new(&table))).transpose()?;
        let stem =
            Path::new(file).file_stem().and_then(|stem| stem.to_str()).ok_or("not a name")?;
        layers.push(Layer {
            module: format!("//files:{stem}").parse()?,
            version: version.clone(),
            digest: image.digest,
            size: image.size,
            inputs: image.digest,
            chunks,
            root: false,
        });
    }
    let manifest = Manifest {
        schema: Manifest::SCHEMA,
        target: format!("//files:{name}").parse()?,
        name,
        version,
        layers,
        process: Default::default(),
        labels: Default::default(),
        limits: Default::default(),
        service: Default::default(),
    };
    let registry = open_writable(registry, &OpenOptions::default())?;
    let file = |digest: &Digest| paths.get(digest).cloned();
    let since = Instant::now();
    let pushed = mica_fetcher::push(&*registry, &manifest, &file, &PushOptions::default(), &())?;
    println!("{} bytes sent in {:.3} s", pushed.bytes, since.elapsed().as_secs_f64());
    Ok(())
}

fn patch(registry: &str, new: &str, old: &str, cache: &str) -> Done {
    let registry = open_writable(registry, &OpenOptions::default())?;
    let manifest = registry.manifest(&registry.resolve(&new.parse()?)?)?;
    let cache = Cache::open(cache)?;
    let bases = PatchBases { packages: vec![old.parse()?], newest: 0 };
    let since = Instant::now();
    let pushed = mica_fetcher::push_patches(&*registry, &cache, &manifest, &|_| None, &bases, &())?;
    for PushedPatch { module, size, chunks, sent, .. } in pushed {
        println!("{module} {size} bytes, {chunks} by chunks, sent: {sent}");
    }
    println!("made in {:.3} s", since.elapsed().as_secs_f64());
    Ok(())
}

fn serve(folder: &str, address: &str) -> Done {
    let listener = mica_fetcher::listen(address)?;
    let ready = |address| println!("http://{address}");
    mica_fetcher::serve_until_signal(listener, Path::new(folder), ServeOptions::default(), ready)?;
    Ok(())
}

fn pull(registry: &str, reference: &str, cache: &str) -> Done {
    let registry = open(registry, &OpenOptions::default())?;
    let cache = Cache::open(cache)?;
    let since = Instant::now();
    let pulled =
        mica_fetcher::pull(&*registry, &reference.parse()?, &cache, &PullOptions::default(), &())?;
    let seconds = since.elapsed().as_secs_f64();
    for (layer, outcome) in pulled.manifest.layers.iter().zip(&pulled.layers) {
        match outcome {
            Outcome::Cached => println!("{} cached", layer.module),
            Outcome::Borrowed { bytes, borrowed, .. } => {
                println!("{} {bytes} bytes fetched, {borrowed} borrowed", layer.module);
            }
            Outcome::Patched { bytes, .. } => println!("{} patched, {bytes} bytes", layer.module),
            Outcome::Shared | Outcome::Lazy => {
                println!("{} fetched by another process", layer.module)
            }
            Outcome::Fetched { bytes, resumed, copied } => {
                println!(
                    "{} {bytes} bytes fetched, {resumed} resumed, {copied} copied",
                    layer.module
                );
            }
        }
    }
    println!("{} bytes fetched in {seconds:.3} s", pulled.fetched_bytes());
    Ok(())
}

fn layers(registry: &str, reference: &str) -> Done {
    let registry = open(registry, &OpenOptions::default())?;
    for layer in registry.manifest(&registry.resolve(&reference.parse()?)?)?.layers {
        let hex = layer.digest.hex();
        println!("blobs/blake3/{}/{hex}", &hex[..2]);
    }
    Ok(())
}

fn hash(files: &[&str]) -> Done {
    let mut buffer = vec![0; 1 << 20];
    for file in files {
        let (mut file, mut hasher) = (std::fs::File::open(file)?, blake3::Hasher::new());
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            };
        }
        println!("{}", Digest::from(hasher.finalize()));
    }
    Ok(())
}
