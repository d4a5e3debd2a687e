//! What other tools made, as packages, and packages in the forms of other tools. skopeo, tar, unsquashfs and sh judge.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::{USERS, User, World, need_fuse};
use serde_json::{Value, json};

/// Runs a shell script in the world's folder, as its user.
#[track_caller]
fn sh(world: &World, script: &str) -> String {
    let ran = world.command("sh").args(["-ec", script]).output().unwrap();
    assert!(ran.status.success(), "{script}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

/// A world with a tree that is a whole system, in `base`.
fn world(user: User) -> World {
    need_fuse();
    let world = World::new(user);
    world.hand_over();
    sh(
        &world,
        "mkdir -p base/bin base/etc base/old && cp /bin/busybox base/bin/busybox
         for name in sh cat ls id; do ln -s busybox base/bin/$name; done
         echo root:x:0:0::/root:/bin/sh > base/etc/passwd
         echo base > base/etc/note && echo hidden > base/old/gone && echo one > base/one && ln base/one base/two",
    );
    world
}

/// Two layers, the upper with a whiteout, as `docker save` writes them: one compressed.
fn docker_archive(world: &World) {
    let config = json!({ "architecture": "amd64", "os": "linux",
        "config": { "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["cat /etc/note $FILE; ls /old"], "Env": ["FILE=/two"],
            "Labels": { "from": "docker" }, "WorkingDir": "/etc" },
        "rootfs": { "type": "layers", "diff_ids": ["sha256:A", "sha256:B"] } });
    world.write("d/config.json", &config.to_string());
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["registry.local/team/box:12"],
        "Layers": ["a/layer.tar", "b/layer.tar"] }]);
    world.write("d/manifest.json", &manifest.to_string());
    world.hand_over();
    sh(
        world,
        "mkdir -p d/a d/b up/etc up/old && echo upper > up/etc/note && : > up/old/.wh.gone && echo new > up/old/new
         tar -C base -czf d/a/layer.tar . && tar -C up -cf d/b/layer.tar .
         hash() { sha256sum | cut -d ' ' -f 1; }
         sed -i s/sha256:A/sha256:$(zcat d/a/layer.tar | hash)/ d/config.json
         sed -i s/sha256:B/sha256:$(hash < d/b/layer.tar)/ d/config.json
         tar -C d -cf box.tar manifest.json config.json a b",
    );
}

#[test]
fn an_image_of_docker_becomes_a_package_layer_by_layer() {
    for user in USERS {
        let world = world(user);
        docker_archive(&world);
        let reference = world.ok(&["import", "-q", "box.tar", "--tag", "stable"]).stdout;
        assert_eq!(reference, "box@12\n");
        let ran = world.ok(&["run", "--rm", "box@stable"]);
        assert_eq!(ran.stdout, "upper\none\nnew\n");
        let manifest: Value =
            serde_json::from_str(&world.ok(&["inspect", "box@12"]).stdout).unwrap();
        let manifest = &manifest["manifest"];
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&manifest["labels"]["from"], &manifest["process"]["workdir"]),
            (&json!("docker"), &json!("/etc"))
        );

        // By skopeo into an OCI layout, packed and as a folder, and from a pipe.
        sh(
            &world,
            "skopeo copy -q --insecure-policy --tmpdir \"$PWD\" docker-archive:box.tar oci:layout:13",
        );
        assert_eq!(world.ok(&["import", "-q", "layout", "--name", "box"]).stdout, "box@13\n");
        let piped = "tar -C layout -c . | \"$0\" import -q - --name piped --version 1";
        let ran = world.command("sh").args(["-c", piped]).arg(world.binary()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&ran.stdout), "piped@1\n", "{ran:?}");
        for name in ["box@13", "piped@1"] {
            assert_eq!(world.ok(&["run", "--rm", name]).stdout, "upper\none\nnew\n");
        }
        assert!(world.ok(&["diff", "box@12", "box@13"]).stdout.is_empty(), "the same trees");
        world.ends_clean();
    }
}

#[test]
fn trees_and_images_become_packages_of_one_layer() {
    for user in USERS {
        let world = world(user);
        for (pack, file) in [
            ("true", "base"),
            ("tar -C base -czf root.tar.gz .", "root.tar.gz"),
            ("tar -C base -c . | zstd -q > root.tar.zst", "root.tar.zst"),
            ("tar -C base -c . | xz -0 > root.tar.xz", "root.tar.xz"),
        ] {
            sh(&world, pack);
            let entrypoint = "/bin/sh -c 'cat /etc/note /two; id -u'";
            let args = ["import", "-q", file, "--name", "tree", "--entrypoint", entrypoint];
            let reference = world.ok(&args).stdout;
            let ran = world.ok(&["run", "--rm", reference.trim()]);
            assert_eq!(ran.stdout, "base\none\n0\n", "{file}");
        }
        world.write("app/run.sh", "#!/bin/sh\necho \"$1 ran $2\"\n");
        std::fs::set_permissions(world.path("app/run.sh"), PermissionsExt::from_mode(0o755))
            .unwrap();
        world.hand_over();
        world.ok(&["image", "pack", "app", "-o", "tool.xar", "--xar-target", "run.sh"]);
        let reference = world.ok(&["import", "-q", "tool.xar", "--version", "1"]).stdout;
        assert_eq!(reference, "tool@1\n");
        assert_eq!(world.ok(&["run", "--rm", "tool@1", "it"]).stdout, "tool.xar ran it\n");
        assert_eq!(world.ok(&["run", "--rm", "--image", "tool.xar"]).stdout, "tool.xar ran \n");
        let said = world.fails(1, &["import", "app/run.sh"]);
        assert!(said.contains("app/run.sh"), "{said}");
        world.ends_clean();
    }
}

#[test]
fn an_archive_cannot_name_files_of_the_host() {
    let world = world(User::Me);
    world.write("secret", "secret\n");
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": ["box:1"], "Layers": ["../secret"] }]);
    world.write("d/manifest.json", &manifest.to_string());
    world.write("d/config.json", "{}");
    for (script, why) in [
        ("true", "cannot open ../secret"),
        (
            "mv d/manifest.json m; sed s,../secret,link, m > d/manifest.json; ln -s $PWD/secret d/link",
            "cannot open link",
        ),
        ("echo '[]' > d/manifest.json", "it holds 0 images"),
    ] {
        sh(&world, script);
        let said = world.fails(1, &["import", "d"]);
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_package_goes_out_and_comes_back_the_same() {
    for user in USERS {
        let world = world(user);
        docker_archive(&world);
        world.ok(&["import", "-q", "box.tar"]);
        world.ok(&["export", "box@12", "-o", "out.tar"]);
        // skopeo takes it in both of its forms, and checks every hash on the way; the first as root only, as it gives the
        // files it unpacks to their owners.
        let forms = if user == User::Me {
            &["oci-archive", "docker-archive"][..]
        } else {
            &["docker-archive"]
        };
        for form in forms {
            let copy = "skopeo copy -q --insecure-policy --tmpdir \"$PWD\"";
            sh(&world, &format!("{copy} {form}:out.tar dir:copied-{form}"));
        }
        let config = sh(&world, "skopeo inspect --tmpdir \"$PWD\" --config docker-archive:out.tar");
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/sh", "-c"]));
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
        world.ok(&["import", "-q", "out.tar", "--name", "Back"]);
        assert!(world.ok(&["diff", "box@12", "Back@12"]).stdout.is_empty());
        assert_eq!(world.ok(&["run", "--rm", "Back@12"]).stdout, "upper\none\nnew\n");
        // Docker has names in lower case only.
        world.ok(&["export", "Back@12", "-o", "back.tar"]);
        let tags = sh(&world, "skopeo list-tags docker-archive:back.tar");
        assert!(tags.contains("back:12"), "{tags}");

        // The merged tree: what the whiteout hides is not in it, and names of one file are links.
        world.ok(&["export", "box@12", "--format", "dir", "-o", "merged"]);
        assert_eq!(sh(&world, "cat merged/etc/note; ls merged/old"), "upper\nnew\n");
        assert_eq!(sh(&world, "stat -c %h merged/one merged/bin/busybox"), "2\n1\n");
        let listed = "\"$0\" export box@12 --format tar | tar -t | grep -c old/";
        let ran = world.command("sh").args(["-c", listed]).arg(world.binary()).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&ran.stdout),
            "2\n",
            "the folder and what is new in it: {ran:?}"
        );
        world.ends_clean();
    }
}

#[test]
fn a_package_becomes_one_file_that_runs_by_itself() {
    let world = World::new(User::Me);
    world.write("app/run.sh", "#!/bin/sh\ncat \"$(dirname \"$0\")/lib/data\"; echo $@\n");
    std::fs::set_permissions(world.path("app/run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    world.write("lib/lib/data", "data\n");
    world.write(
        "graph.json",
        r#"{"modules": [
            {"label": "//:lib", "outputs": [{"path": "", "source": "lib"}]},
            {"label": "//:app", "deps": ["//:lib"], "outputs": [{"path": "", "source": "app"}], "entrypoint": ["./run.sh"]}]}"#,
    );
    world.ok(&["pack", "-q", "--graph", "graph.json", "--target", "//:app", "--version", "v1"]);
    world.ok(&["export", "--xar", "app@v1", "-o", "app.xar"]);
    let first = sh(&world, "head -1 app.xar; test -x app.xar; grep -a '^XAREXEC_TARGET' app.xar");
    assert_eq!(first, "#!/usr/bin/env xarexec_fuse\nXAREXEC_TARGET=\"xar_start.sh\"\n");
    let unpacked = Command::new("unsquashfs")
        .args(["-q", "-n", "-o", "4096", "-d"])
        .arg(world.path("unpacked"))
        .arg(world.path("app.xar"))
        .output()
        .expect("this test needs squashfs-tools");
    assert!(unpacked.status.success(), "{unpacked:?}");
    // As xarexec_fuse calls it: with the file before the arguments.
    assert_eq!(sh(&world, "unpacked/xar_start.sh app.xar a b"), "data\na b\n");
    need_fuse();
    assert_eq!(world.ok(&["xar", "run", "app.xar", "a", "b"]).stdout, "data\na b\n");
    assert!(world.fails(1, &["export", "--xar", "app@v1"]).contains("needs -o"));
}
