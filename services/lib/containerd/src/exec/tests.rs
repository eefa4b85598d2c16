//! How much of its input a program may leave unread. What runs is asked of the contract and of the end-to-end tests.

use futures::poll;
use tokio::{io::AsyncReadExt as _, net::unix::pipe::OpenOptions};

use super::*;
use crate::Settings;

#[tokio::test]
async fn input_is_taken_in_up_to_its_window_and_what_follows_waits_for_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::connect(Settings::of_none(dir.path())).unwrap();
    let exec = Exec {
        container: String::new(),
        cgroup: String::new(),
        exec_id: String::new(),
        folder: PathBuf::new(),
    };
    let path = dir.path().join("stdin");
    fifos::make_lasting(&path).unwrap();
    let stdin = Stdin::open(&path).unwrap();
    let (said, input) = mpsc::channel(1);
    let (output, mut told) = mpsc::channel(1);
    let mut taking = Taking::default();
    let feeding = containerd.feed(&exec, None, stdin, input, &output, &mut taking);
    let mut feeding = std::pin::pin!(feeding);
    for (bytes, places) in [(EXEC_WINDOW_BYTES - 1, 1), (1, 1), (1, 0)] {
        said.try_send(ExecInput::Bytes(vec![7; bytes])).unwrap();
        assert!(poll!(&mut feeding).is_pending());
        assert_eq!(said.capacity(), places, "{bytes} bytes more");
    }
    let reading = async {
        let mut program = OpenOptions::new().open_receiver(&path).unwrap();
        let mut read = vec![0; EXEC_WINDOW_BYTES + 1];
        program.read_exact(&mut read).await.unwrap();
        let all = ExecOutput::Taken(count(read.len()));
        while told.recv().await.unwrap() != all {}
    };
    tokio::select! {
        () = feeding => panic!("its caller is there"),
        read = timeout(Duration::from_secs(20), reading) => read.unwrap(),
    }
    assert_eq!(said.capacity(), 1);
}
