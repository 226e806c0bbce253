use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A directory with one fake tool, a shell script.
fn fake(program: &str, script: &str) -> (tempfile::TempDir, Tools) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(program);
    fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let tools = Tools::at(directory.path());
    (directory, tools)
}

#[tokio::test]
async fn what_a_tool_prints_is_returned_and_its_language_is_plain() {
    let (_kept, tools) = fake("lvs", "echo \"$LC_ALL $*\"; echo careful >&2");
    let output = tools.report("lvs", &["lv_uuid", "lv_name"], &["vg0"]).await.unwrap();
    let expected = "C --reportformat json --units b --nosuffix -o lv_uuid,lv_name vg0\n";
    assert_eq!(output.text(), expected);
    assert_eq!(output.stderr, "careful");
}

#[tokio::test]
async fn a_failure_names_the_command_and_what_it_said() {
    let (_kept, tools) = fake("lvcreate", "echo '  Volume group \"vg9\" not found' >&2; exit 5");
    let error = tools.change("lvcreate", &["-n", "a b", "vg9/x"]).await.unwrap_err().to_string();
    assert!(error.contains("`lvcreate -n \"a b\" vg9/x` failed"), "{error}");
    assert!(error.contains("Volume group \"vg9\" not found"), "{error}");
}

#[tokio::test]
async fn a_missing_tool_is_named_with_its_package() {
    let error = Tools::new().run("thin_delta_of_nobody", &[]).await.unwrap_err();
    assert!(matches!(error, ToolError::Missing { .. }), "{error}");
    assert!(!Tools::new().has("thin_delta_of_nobody"));
    assert!(Tools::new().has("sh"));
}

#[tokio::test]
async fn a_tool_that_hangs_is_given_up() {
    let (_kept, tools) = fake("dmsetup", "echo waiting >&2; exec sleep 600");
    let tools = tools.with_limit(Duration::from_millis(300));
    let error = tools.run("dmsetup", &["status"]).await.unwrap_err();
    assert!(matches!(&error, ToolError::TimedOut { said, .. } if said.contains("killed")), "{error}");
    let error = tools.change("dmsetup", &["suspend"]).await.unwrap_err();
    assert!(matches!(&error, ToolError::TimedOut { said, .. } if said.contains("asked to end")), "{error}");
}

/// The shell that a hook is started by waits for what it runs.
#[tokio::test]
async fn a_hook_that_hangs_ends_with_all_that_it_started() {
    let (kept, tools) = fake("sh.hook", "sleep 600 & echo $! > \"$1\"; wait");
    let tools = tools.with_limit(Duration::from_millis(500));
    let file = kept.path().join("child");
    let error = tools.hook("sh.hook", &[file.to_str().unwrap()]).await.unwrap_err();
    assert!(matches!(error, ToolError::TimedOut { .. }), "{error}");
    let child = fs::read_to_string(file).unwrap();
    let state = || fs::read_to_string(format!("/proc/{}/stat", child.trim()));
    // Whoever inherited it may take its time to note its end.
    while state().is_ok_and(|state| !state.contains(") Z ")) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_change_goes_on_when_nobody_waits_for_it_any_more() {
    let (kept, tools) = fake("lvcreate", "read go < \"$1\"; echo done > \"$2\"");
    let (gate, proof) = (kept.path().join("gate"), kept.path().join("proof"));
    for pipe in [&gate, &proof] {
        rustix::fs::mknodat(rustix::fs::CWD, pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    }
    let arguments = [gate.to_str().unwrap(), proof.to_str().unwrap()];
    {
        let change = tools.change("lvcreate", &arguments);
        tokio::pin!(change);
        assert!(futures_poll_once(change.as_mut()).await.is_none());
    }
    // The tool waits for the gate, which opens only after its future is gone.
    let open = gate.clone();
    tokio::task::spawn_blocking(move || fs::write(open, "go\n").unwrap()).await.unwrap();
    let said = tokio::task::spawn_blocking(move || fs::read_to_string(proof).unwrap()).await.unwrap();
    assert_eq!(said, "done\n");
}

async fn futures_poll_once<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
    std::future::poll_fn(|context| match std::pin::Pin::new(&mut future).poll(context) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn a_stream_that_ends_early_is_no_whole_one() {
    let (_kept, tools) = fake("thin_delta", "echo '<superblock>'; echo broken >&2; exit 1");
    let mut stream = tools.stream("thin_delta", &[]).unwrap();
    let mut buffer = [0; 64];
    let read = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..read], b"<superblock>\n");
    let error = stream.read(&mut buffer).await.unwrap_err();
    assert!(matches!(&error, ToolError::Failed { said, .. } if said == "broken"), "{error}");

    let (_kept, tools) = fake("thin_delta", "echo x");
    let mut stream = tools.stream("thin_delta", &[]).unwrap();
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 2);
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
}

#[tokio::test]
async fn only_the_end_of_long_complaints_is_kept() {
    let script = "i=0; while [ $i -lt 4000 ]; do echo \"warning $i\" >&2; i=$((i+1)); done; exit 3";
    let (_kept, tools) = fake("lvs", script);
    let error = tools.run("lvs", &[]).await.unwrap_err().to_string();
    assert!(error.contains("warning 3999") && !error.contains("warning 10;"), "{}", error.len());
}
