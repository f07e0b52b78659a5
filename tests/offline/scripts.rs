//! The shell scripts, without the programs that they build.

use std::{
    fs::{self, File, FileTimes},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_control_plane_program_in_use_by_a_checkout_is_kept() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controlplane");
    let hash = Command::new("bash")
        .args(["-c", "cat -- *.go go.mod go.sum build.sh | sha256sum | cut -c1-12"])
        .current_dir(&sources)
        .output()
        .unwrap();
    let used = format!("controlplane-{}", String::from_utf8(hash.stdout).unwrap().trim());
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join("spillway");
    fs::create_dir(&cache).unwrap();
    let days_ago =
        |days: u64| FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60));
    for (name, days) in [(used.as_str(), 9), ("controlplane-forgotten", 9), ("controlplane-recent", 2)] {
        program(&cache.join(name), "");
        File::options().write(true).open(cache.join(name)).unwrap().set_times(days_ago(days)).unwrap();
    }
    for _ in 0..2 {
        let mut command = Command::new(sources.join("build.sh"));
        let ran = command.env("XDG_CACHE_HOME", home.path()).env_remove("SPILLWAY_CONTROLPLANE").output().unwrap();
        assert_eq!(String::from_utf8(ran.stdout).unwrap().trim_end(), cache.join(&used).to_str().unwrap());
    }
    let mut expected = [used, "controlplane-recent".to_owned()];
    expected.sort();
    assert_eq!(names(&cache), expected);
}

#[test]
fn an_interrupted_demo_cleans_up_and_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let [bin, tmp] = ["bin", "tmp"].map(|name| dir.path().join(name));
    fs::create_dir(&bin).unwrap();
    fs::create_dir(&tmp).unwrap();
    // A build that fails when it is interrupted.
    program(&bin.join("cargo"), "#!/bin/sh\ntrap 'exit 1' INT\necho >\"$TMPDIR/started\"\nsleep 60\n");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let demo = Command::new("env") // SIGINT may be ignored in here, and a shell cannot take that back
        .args(["--default-signal=INT", "bash", "examples/demo.sh"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PATH", path)
        .env("TMPDIR", &tmp)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !tmp.join("started").exists() {
        assert!(started.elapsed() < Duration::from_secs(20), "the demo does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let group = format!("-{}", demo.id());
    assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
    let ended = demo.wait_with_output().unwrap();
    let words = String::from_utf8(ended.stderr).unwrap();
    assert_eq!((ended.status.code(), words.contains("failed")), (Some(130), false), "{words}");
    assert_eq!(names(&tmp), ["started"]);
}
