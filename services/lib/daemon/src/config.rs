//! Layered configuration: defaults, then a TOML file, then the environment, then flags.

use std::{path::Path, time::Duration};

use figment::{
    Figment,
    error::{Actual, Kind},
    providers::{Env, Format as _, Serialized, Toml},
    value::Value,
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

/// Which key is at fault, why, and where it was set.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{0}")]
    Invalid(Box<figment::Error>),
    #[error("{path} is not there")]
    FileMissing { path: String },
    #[error("{key}: {problem}")]
    Refused { key: &'static str, problem: String },
}

/// Reads a `T` from its defaults, the file that is `named` or else `file`, the variables that begin with `env_prefix` (nested
/// keys joined by `__`), and `set`. A missing file is an error only where it was named.
pub fn load_config<T>(
    defaults: &T,
    named: Option<&Path>,
    file: &str,
    env_prefix: &str,
    set: &[(String, String)],
) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned,
{
    // As the environment is read: a list, a number, a truth value, else a text.
    let typed = |text: &String| text.parse().unwrap_or_else(|_| Value::from(text.as_str()));
    let set: Vec<_> = set
        .iter()
        .map(|(key, it)| (key.clone(), typed(it)))
        .collect();
    let path = named.unwrap_or(Path::new(file));
    load_layers(defaults, path, named.is_some(), env_prefix, &set)
}

fn load_layers<T>(
    defaults: &T,
    file: &Path,
    file_required: bool,
    env_prefix: &str,
    flags: &[(String, Value)],
) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned,
{
    if file_required && !file.is_file() {
        return Err(ConfigError::FileMissing {
            path: file.display().to_string(),
        });
    }
    let mut figment = Figment::from(Serialized::defaults(defaults));
    if file.is_file() {
        figment = figment.merge(Toml::file_exact(file));
    }
    figment = figment.merge(Env::prefixed(env_prefix).split("__"));
    for (key, value) in flags {
        figment = figment.merge(Serialized::global(key, value));
    }
    // The environment has no types: `123456` reads as a number also where the key wants a text.
    for _ in 0..ENV_TEXTS_MAX {
        match figment.extract() {
            Ok(config) => return Ok(config),
            Err(error) => match text_from_env(&error, env_prefix) {
                Some((key, text)) => figment = figment.merge(Serialized::global(&key, text)),
                None => return Err(ConfigError::Invalid(Box::new(error))),
            },
        }
    }
    figment
        .extract()
        .map_err(|error| ConfigError::Invalid(Box::new(error)))
}

/// More keys than any process has.
const ENV_TEXTS_MAX: usize = 64;

/// The key and the text of a variable that was read as something else where a text is wanted.
fn text_from_env(error: &figment::Error, env_prefix: &str) -> Option<(String, String)> {
    let Kind::InvalidType(actual, expected) = &error.kind else {
        return None;
    };
    let numeric = matches!(
        actual,
        Actual::Bool(_) | Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_)
    );
    if !numeric || !expected.contains("string") && !expected.contains("text") {
        return None;
    }
    let variable = format!("{env_prefix}{}", error.path.join("__").to_uppercase());
    let text = std::env::var(variable).ok()?;
    Some((error.path.join("."), text.trim().to_owned()))
}

/// The kernel's limit for the path of a Unix socket, with its end mark.
pub const SOCKET_PATH_MAX: usize = 107;

/// Refuses a path at which no socket can be.
pub fn check_socket(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    let refused = |problem| Err(ConfigError::Refused { key, problem });
    if !path.is_absolute() {
        return refused(format!("`{}` must be an absolute path", path.display()));
    }
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return refused(format!(
            "the path has {length} bytes, a socket's can have {SOCKET_PATH_MAX}"
        ));
    }
    Ok(())
}

/// Reads what is given to a flag as `KEY=VALUE`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads a duration from text such as `10s`, `250ms` or `1h 30m`.
pub mod duration {
    use super::{Deserialize, Deserializer, Duration};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|it| it.try_into().ok())
            .ok_or_else(|| {
                serde::de::Error::custom(format!("`{text}` is no duration like `10s` or `1h 30m`"))
            })
    }

    pub fn serialize<S: serde::Serializer>(
        it: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", it.as_millis()))
    }
}

#[cfg(test)]
mod tests {
    use figment::Jail;

    use super::*;

    #[derive(Debug, Deserialize, Serialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Config {
        name: String,
        network: Network,
        #[serde(with = "duration")]
        wait: Duration,
    }

    #[derive(Debug, Deserialize, Serialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Network {
        mtu: u16,
    }

    fn load(flags: &[(String, Value)]) -> Result<Config, ConfigError> {
        let defaults = Config {
            name: "a".into(),
            network: Network { mtu: 1500 },
            wait: Duration::ZERO,
        };
        load_layers(&defaults, Path::new("c.toml"), false, "BERTH_T_", flags)
    }

    #[test]
    fn a_path_of_a_socket_is_as_long_as_the_kernels_and_one_more_is_refused_by_its_key() {
        let of = |path: &str| check_socket("socket", Path::new(path)).map_err(|it| it.to_string());
        let longest = format!("/{}", "a".repeat(SOCKET_PATH_MAX - 1));
        assert_eq!(of(&longest), Ok(()));
        for refused in [&format!("{longest}a"), &longest[1..]] {
            let error = of(refused).unwrap_err();
            assert!(error.starts_with("socket: "), "{error}");
        }
    }

    #[test]
    #[expect(clippy::result_large_err, reason = "the jail's own error type")]
    fn each_layer_wins_over_the_one_before() {
        Jail::expect_with(|jail| {
            assert_eq!(load(&[]).unwrap().network.mtu, 1500);
            jail.create_file("c.toml", "wait = '1m 30s'\n[network]\nmtu = 1400")?;
            assert_eq!(load(&[]).unwrap().network.mtu, 1400);
            assert_eq!(load(&[]).unwrap().wait, Duration::from_secs(90));
            jail.set_env("BERTH_T_NETWORK__MTU", "1300");
            assert_eq!(load(&[]).unwrap().network.mtu, 1300);
            let flags = [("network.mtu".to_owned(), Value::from(1200))];
            assert_eq!(load(&flags).unwrap().network.mtu, 1200);
            Ok(())
        });
    }

    #[test]
    #[expect(clippy::result_large_err, reason = "the jail's own error type")]
    fn a_text_of_digits_in_the_environment_stays_a_text() {
        Jail::expect_with(|jail| {
            jail.set_env("BERTH_T_NAME", "007");
            assert_eq!(load(&[]).unwrap().name, "007");
            Ok(())
        });
    }

    #[test]
    #[expect(clippy::result_large_err, reason = "the jail's own error type")]
    fn what_is_wrong_is_named_with_its_key() {
        Jail::expect_with(|jail| {
            for (text, key) in [
                ("nam = 'x'", "nam"),
                ("[network]\nmtu = 70000", "network.mtu"),
                ("wait = 'soon'", "wait"),
            ] {
                jail.create_file("c.toml", text)?;
                let error = load(&[]).unwrap_err().to_string();
                assert!(error.contains(key) && error.contains("c.toml"), "{error}");
            }
            Ok(())
        });
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_there() {
        let defaults = Config {
            name: "a".into(),
            network: Network { mtu: 1500 },
            wait: Duration::ZERO,
        };
        let error = load_layers(
            &defaults,
            Path::new("/nowhere/c.toml"),
            true,
            "BERTH_T_",
            &[],
        );
        assert!(matches!(error, Err(ConfigError::FileMissing { .. })));
    }
}
