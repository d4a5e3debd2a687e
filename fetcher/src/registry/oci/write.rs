//! Publishing to an OCI registry.

use super::*;

use super::form::EMPTY;
use super::upload::push_scope;
use crate::file::Named;
use mica_squashfs::chunks::MAGIC;

impl OciRegistry {
    fn clash(
        &self,
        name: &PackageName,
        word: &Version,
        wanted: WordKind,
        is: WordKind,
    ) -> RegistryError {
        let (package, word) = (name.clone(), word.clone());
        self.add_error(AddError::Clash { package, word, wanted, is })
    }

    fn add_error(&self, source: AddError) -> RegistryError {
        RegistryError::Add { registry: self.location.to_string(), source }
    }

    /// Makes sure that a blob is in a repository, and says what it is called there.
    fn ensure(&self, below: &str, digest: &Digest) -> Result<Facts, RegistryError> {
        let place = self.place(digest)?;
        if place.below == below {
            return Ok(place.facts);
        }
        let (from, to) = (self.location.repository(&place.below), self.location.repository(below));
        let there =
            self.has(&to, &place.facts.sha256)? || self.mount(&from, &to, &place.facts.sha256)?;
        if !there {
            // Not every registry mounts.
            let file = self.known().files.get(digest).cloned();
            match file {
                Some(file) => self.store(&to, &place.facts, Content::File(&file))?,
                None => self.carry(&to, digest, &place)?,
            };
        }
        let place = Place { below: below.to_owned(), ..place };
        self.known().places.insert(*digest, place.clone());
        Ok(place.facts)
    }

    /// From one repository into another by way of this machine.
    fn carry(&self, to: &str, digest: &Digest, place: &Place) -> Result<bool, RegistryError> {
        let blob = Blob { digest: *digest, size: place.facts.size };
        let broken = |source| RegistryError::Broken {
            registry: self.location.to_string(),
            digest: *digest,
            source,
        };
        let staging = crate::file::Staging::new(crate::file::Folder::open(&std::env::temp_dir())?);
        let mut copy = staging.create()?;
        let mut stream = self.blob(&blob, 0..blob.size)?;
        std::io::copy(&mut stream.reader, &mut copy.file).map_err(broken)?;
        self.store(to, &place.facts, Content::File(&copy.path))
    }

    fn put_manifest(
        &self,
        below: &str,
        reference: &str,
        kind: &str,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        let repository = self.location.repository(below);
        let path = format!("{repository}/manifests/{reference}");
        self.client.sender.options.retry.run(|| {
            let url = self.client.url(&path)?;
            let build = |request: reqwest::RequestBuilder| {
                request.header(CONTENT_TYPE, kind).body(bytes.to_vec())
            };
            self.write(Method::PUT, &url, &push_scope(&repository), &build).map(drop)
        })
    }

    fn put_small(&self, below: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        let (sha256, size) = (form::sha256(bytes), bytes.len() as u64);
        let facts = Facts { sha256, size, diff_id: None };
        self.store(&self.location.repository(below), &facts, Content::Bytes(bytes)).map(drop)
    }

    /// Puts more bytes beside an image: what is there already stays.
    fn put_companion(
        &self,
        below: &str,
        image: &[u8],
        extras: &[Digest],
    ) -> Result<(), RegistryError> {
        if extras.is_empty() {
            return Ok(());
        }
        let subject = Descriptor::of(MANIFEST_TYPE, image);
        let old = self.referrers(below, &subject.digest)?;
        let mut all: Vec<(Digest, Facts)> = Vec::new();
        for companion in old.iter().flat_map(|index| form::of_type(index, COMPANION_TYPE)) {
            if let Some((manifest, _)) = self.fetch(below, &companion.digest)? {
                all.extend(manifest.facts());
            }
        }
        for digest in extras {
            let facts = self.ensure(below, digest)?;
            if all.iter().all(|(known, _)| known != digest) {
                all.push((*digest, facts));
            }
        }
        self.put_referrer(below, &subject, COMPANION_TYPE, &form::companion(&subject, &all))
    }

    /// Puts a manifest beside an image, in the place of an older one of its type.
    fn put_referrer(
        &self,
        below: &str,
        subject: &Descriptor,
        kind: &str,
        manifest: &[u8],
    ) -> Result<(), RegistryError> {
        self.put_small(below, EMPTY)?;
        self.put_manifest(below, &form::sha256(manifest), MANIFEST_TYPE, manifest)?;
        // As late as can be: nothing keeps others from changing the index meanwhile.
        let old = self.referrers(below, &subject.digest)?;
        let tag = subject.digest.replace(':', "-");
        self.put_manifest(below, &tag, INDEX_TYPE, &form::referrers(old, kind, manifest))
    }

    /// Adds signatures to those of an image.
    fn put_signatures(
        &self,
        below: &str,
        subject: &Descriptor,
        signatures: &Signatures,
    ) -> Result<(), RegistryError> {
        let mut all = self.signatures_of(below, &subject.digest)?;
        if !all.merge(signatures) {
            return Ok(());
        }
        let manifest = form::signatures(subject, all.to_text());
        self.put_referrer(below, subject, SIGNATURES_TYPE, &manifest)
    }

    /// The manifest that is to be published, which [`put_blob`](WriteRegistry::put_blob) got before.
    fn pending(&self, blob: &Blob) -> Result<Manifest, RegistryError> {
        let registry = self.location.to_string();
        let json = self.known().documents.get(&blob.digest).cloned();
        let digest = blob.digest;
        let json =
            json.ok_or_else(|| RegistryError::MissingBlob { registry: registry.clone(), digest })?;
        Manifest::from_json(&json).map_err(|source| RegistryError::Manifest {
            registry,
            digest,
            source,
        })
    }

    /// Refuses tags that are versions.
    fn check_tags(&self, name: &PackageName, tags: &[Version]) -> Result<(), RegistryError> {
        for tag in tags {
            if self.entry(name, tag)?.is_some() {
                return Err(self.clash(name, tag, WordKind::Tag, WordKind::Version));
            }
        }
        Ok(())
    }

    fn put_image(&self, below: &str, package: &Manifest) -> Result<Vec<u8>, RegistryError> {
        let mut facts = Vec::new();
        for layer in &package.layers {
            let mut found = self.ensure(below, &layer.digest)?;
            if found.diff_id.is_none() {
                let file = self.known().files.get(&layer.digest).cloned();
                let registry = self.location.to_string();
                let missing = RegistryError::MissingBlob { registry, digest: layer.digest };
                found.diff_id = Some(crate::tar::diff_id(&file.ok_or(missing)?)?);
            }
            facts.push(found);
        }
        let time = UNIX_EPOCH.elapsed().unwrap_or_default();
        let form = form::image(package, &facts, time);
        self.put_small(below, &form.config)?;
        let tables: Vec<Digest> =
            package.layers.iter().filter_map(|layer| Some(layer.chunks.as_ref()?.digest)).collect();
        let mut seen = HashSet::new();
        let tables: Vec<Digest> =
            tables.into_iter().filter(|digest| seen.insert(*digest)).collect();
        self.put_companion(below, &form.manifest, &tables)?;
        let signatures = self.known().signatures.remove(&package.digest());
        if let Some(signatures) = signatures {
            let image = Descriptor::of(MANIFEST_TYPE, &form.manifest);
            self.put_signatures(below, &image, &signatures)?;
        }
        Ok(form.manifest)
    }
}

impl WriteRegistry for OciRegistry {
    fn begin(&self, manifest: &Manifest) -> Result<(), RegistryError> {
        let latest = self.fetch(&names::repository(&manifest.name)?, Index::LATEST)?;
        if let Some((_, entry)) = latest.and_then(|(latest, _)| latest.entry()) {
            let place = self.place(&entry.manifest.digest)?;
            // An image by other means: then its layers say nothing about ours.
            drop(self.read_config(&place, &entry.manifest.digest));
        }
        let unknown = |layer: &&Layer| {
            let known = self.known();
            known.places.get(&layer.digest).is_none_or(|place| place.facts.diff_id.is_none())
        };
        let unknown: Vec<&Layer> = manifest.layers.iter().filter(unknown).collect();
        let found = parallel::map(PARALLEL, &unknown, |layer| self.layer_by_inputs(&layer.inputs));
        found.into_iter().try_for_each(|found| found.map(drop))
    }

    fn check_writable(&self) -> Result<(), RegistryError> {
        self.put_small(LAYERS, EMPTY)
    }

    fn has_blob(&self, blob: &Blob) -> Result<bool, RegistryError> {
        match self.place(&blob.digest) {
            Ok(place) => self.has(&self.location.repository(&place.below), &place.facts.sha256),
            Err(RegistryError::MissingBlob { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn put_blob(&self, blob: &Blob, content: Content<'_>) -> Result<bool, RegistryError> {
        let path = match content {
            // Documents become part of the images that are made of them.
            Content::Bytes(bytes) => {
                super::super::check_bytes("the caller", blob, bytes)?;
                return Ok(self.known().documents.insert(blob.digest, bytes.to_vec()).is_none());
            }
            Content::File(path) => path,
        };
        let file = std::fs::File::open(path).named("open", path)?;
        let found = crate::file::hash(&file, path)?;
        if found != (blob.digest, blob.size) {
            let (registry, expected) = (path.display().to_string(), blob.digest);
            return Err(RegistryError::WrongBytes { registry, expected, found: found.0 });
        }
        let is_image = !crate::file::starts_with(path, &MAGIC)?
            && !crate::file::starts_with(path, &crate::patch::MAGIC)?;
        let facts = facts(path, is_image)?;
        let is_new = self.store(&self.location.repository(LAYERS), &facts, content)?;
        let mut known = self.known();
        known.files.insert(blob.digest, path.to_owned());
        let place = Place { below: LAYERS.to_owned(), facts, in_config: false };
        known.places.insert(blob.digest, place);
        Ok(is_new)
    }

    /// Those of a package that has no image yet are put beside it when it is published.
    fn add_signatures(
        &self,
        manifest: &Digest,
        signatures: &Signatures,
    ) -> Result<(), RegistryError> {
        let image = self.known().packages.get(manifest).cloned();
        if let Some((below, image)) = image {
            return self.put_signatures(&below, &image, signatures);
        }
        self.known().signatures.entry(*manifest).or_default().merge(signatures);
        Ok(())
    }

    fn publish(&self, publication: &Publication) -> Result<Published, RegistryError> {
        let Publication { name, version, manifest: blob, tags } = publication;
        let package = self.pending(blob)?;
        let below = names::repository(name)?;
        if version.as_str() == Index::LATEST {
            return Err(self.clash(name, version, WordKind::Version, WordKind::Tag));
        }
        self.check_tags(name, tags)?;
        let held = self.image(name, &names::tag(version))?;
        let (bytes, published) = match held {
            Some(Found { entry, .. }) if entry.version != *version => {
                return Err(self.clash(name, version, WordKind::Version, WordKind::Tag));
            }
            Some(Found { entry, .. }) if entry.manifest.digest != blob.digest => {
                let (package, version, held) =
                    (name.clone(), version.clone(), entry.manifest.digest);
                return Err(self.add_error(AddError::Taken { package, version, held }));
            }
            Some(Found { bytes, .. }) => (bytes, Published::Unchanged),
            None => (self.put_image(&below, &package)?, Published::New),
        };
        let is_new = published == Published::New;
        let mut words: Vec<String> = tags.iter().map(names::tag).collect();
        if is_new {
            words.insert(0, names::tag(version));
            words.push(Index::LATEST.to_owned());
        }
        for word in words {
            self.put_manifest(&below, &word, MANIFEST_TYPE, &bytes)?;
        }
        Ok(published)
    }

    fn tag(
        &self,
        name: &PackageName,
        tag: &Version,
        version: &Version,
    ) -> Result<(), RegistryError> {
        let below = names::repository(name)?;
        if self.tags(&below)?.is_none() {
            return Err(super::super::unknown_package(self, name));
        }
        self.check_tags(name, std::slice::from_ref(tag))?;
        let found = self.image(name, &names::tag(version))?;
        match found.filter(|found| found.entry.version == *version) {
            Some(found) => self.put_manifest(&below, &names::tag(tag), MANIFEST_TYPE, &found.bytes),
            None => {
                let (package, version) = (name.clone(), version.clone());
                Err(self.add_error(AddError::NoVersion { package, version }))
            }
        }
    }

    fn remember(&self, layer: &Layer) -> Result<(), RegistryError> {
        if self.layer_by_inputs(&layer.inputs)?.is_some() {
            return Ok(());
        }
        let mut image = self.ensure(LAYERS, &layer.digest)?;
        if image.diff_id.is_none() {
            image.diff_id = self.place(&layer.digest)?.facts.diff_id;
        }
        let table =
            layer.chunks.as_ref().map(|table| self.ensure(LAYERS, &table.digest)).transpose()?;
        let note = form::note(layer, &image, table.as_ref());
        self.put_small(LAYERS, EMPTY)?;
        self.put_manifest(LAYERS, &layer.inputs.hex(), MANIFEST_TYPE, &note)
    }

    fn add_patches(&self, image: &Digest, patches: &[PatchNote]) -> Result<(), RegistryError> {
        let mut notes = PatchNotes::new(*image, self.patches(image)?);
        notes.merge(patches);
        let blobs = notes.patches.iter().map(|note| self.ensure(LAYERS, &note.patch.digest));
        let facts = blobs.collect::<Result<Vec<_>, _>>()?;
        self.put_small(LAYERS, EMPTY)?;
        let note = form::patches_note(&notes, &facts);
        self.put_manifest(LAYERS, &names::patches(image), MANIFEST_TYPE, &note)
    }
}
