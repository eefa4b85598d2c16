//! The OCI process of a program beside a container's own, and what its runtime says when it cannot be started. Pure.

use berth_platform::{ExecCommand, NotStarted};
use serde_json::{Value, json};

use crate::{spec::merged, users::User};

const TERM: &str = "TERM=xterm";

/// As the container's own process, but for what the command says.
pub(crate) fn of(own: &Value, command: &ExecCommand, user: Option<&User>) -> Value {
    let mut process = own.clone();
    process["args"] = json!(command.argv);
    if !command.directory.is_empty() {
        process["cwd"] = json!(command.directory);
    }
    let of_container = own["env"].as_array().into_iter().flatten();
    let of_container = of_container.filter_map(|it| it.as_str().map(str::to_owned));
    let term = command.terminal.map(|_| TERM.to_owned());
    let home = user.map(|it| {
        let home = it.home.as_deref().filter(|it| !it.is_empty());
        format!("HOME={}", home.unwrap_or("/"))
    });
    let lines = term.into_iter().chain(of_container).chain(home);
    process["env"] = json!(merged(lines.chain(command.env.iter().cloned())));
    if let Some(user) = user {
        process["user"] =
            json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.groups });
    }
    process["terminal"] = json!(command.terminal.is_some());
    if let Some(size) = command.terminal {
        process["consoleSize"] = json!({ "width": size.columns, "height": size.rows });
    } else if let Some(process) = process.as_object_mut() {
        process.remove("consoleSize");
    }
    process
}

/// By the words of the runtime: its codes say nothing.
pub(crate) fn why_not_started(message: &str) -> NotStarted {
    let message = message.to_lowercase();
    let says = |text: &str| message.contains(text);
    if says("chdir") || says("cwd") {
        NotStarted::Other
    } else if says("executable file not found")
        || says("executable file `")
        || says("no such file or directory")
        || says("not a directory")
    {
        NotStarted::NotFound
    } else if says("permission denied") || says("exec format error") || says("is a directory") {
        NotStarted::NotExecutable
    } else {
        NotStarted::Other
    }
}

/// The runtime's message without the layers that handed it on.
pub(crate) fn plain(message: &str) -> String {
    const LAST_LAYER: &str = "unable to start container process: ";
    let text = match message.rsplit_once(LAST_LAYER) {
        Some((_, rest)) => rest,
        None => message,
    };
    text.trim_end_matches(": unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use berth_platform::TerminalSize;

    use super::*;

    fn own() -> Value {
        json!({
            "args": ["httpd"], "cwd": "/srv", "env": ["PATH=/bin", "A=1", "HOME=/root"],
            "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true, "oomScoreAdj": 5,
        })
    }

    fn command(argv: &[&str]) -> ExecCommand {
        ExecCommand {
            argv: argv.iter().map(|it| (*it).to_owned()).collect(),
            ..ExecCommand::default()
        }
    }

    #[test]
    fn a_program_is_as_its_container_where_nothing_else_is_said() {
        let process = of(&own(), &command(&["ls", "-l"]), None);
        assert_eq!(process["args"], json!(["ls", "-l"]));
        for key in ["cwd", "env", "user", "noNewPrivileges", "oomScoreAdj"] {
            assert_eq!(process[key], own()[key], "{key}");
        }
        assert_eq!(process["terminal"], json!(false));
    }

    #[test]
    fn what_is_said_wins_and_a_terminal_has_a_name_and_a_size() {
        let user = User {
            uid: 33,
            gid: 34,
            groups: vec![50],
            home: Some("/var/www".into()),
        };
        let command = ExecCommand {
            env: vec!["A=2".into(), "B=3".into()],
            directory: "/tmp".into(),
            terminal: Some(TerminalSize {
                columns: 100,
                rows: 40,
            }),
            ..command(&["sh"])
        };
        let process = of(&own(), &command, Some(&user));
        assert_eq!(process["cwd"], json!("/tmp"));
        let env = json!(["TERM=xterm", "PATH=/bin", "A=2", "HOME=/var/www", "B=3"]);
        assert_eq!(process["env"], env);
        let user = json!({ "uid": 33, "gid": 34, "additionalGids": [50] });
        assert_eq!(process["user"], user);
        assert_eq!(process["terminal"], json!(true));
        assert_eq!(
            process["consoleSize"],
            json!({ "width": 100, "height": 40 })
        );
    }

    #[test]
    #[rustfmt::skip]
    fn the_words_of_the_runtime_tell_why_a_program_was_not_started() {
        let cases = [
            (r#"OCI runtime exec failed: exec failed: unable to start container process: exec: "nope": executable file not found in $PATH: unknown"#, NotStarted::NotFound),
            (r#"exec failed: unable to start container process: exec: "/nope": stat /nope: no such file or directory: unknown"#,              NotStarted::NotFound),
            ("executable file `nope` not found in $PATH: No such file or directory",                                                            NotStarted::NotFound),
            (r#"exec failed: unable to start container process: exec: "/etc/passwd": permission denied: unknown"#,                            NotStarted::NotExecutable),
            (r#"unable to start container process: chdir to cwd ("/x") set in config.json failed: no such file or directory: unknown"#,       NotStarted::Other),
            ("something else",                                                                                                                  NotStarted::Other),
        ];
        for (message, why) in cases {
            assert_eq!(why_not_started(message), why, "{message}");
        }
        assert_eq!(plain(cases[1].0), r#"exec: "/nope": stat /nope: no such file or directory"#);
        assert_eq!(plain("something else"), "something else");
    }
}
