//! What a constant, or the default of a setting, is worth: read from the tokens of its file.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Number(u64),
    Time(Duration),
}

/// The expression behind `const NAME: T =`, whichever item it is in.
pub(crate) fn constant<'a>(row: &'a [String], name: &str) -> Option<&'a [String]> {
    let at = row
        .windows(3)
        .position(|it| it[0] == "const" && it[1] == name && it[2] == ":")?;
    let begin = at + 1 + row[at..].iter().position(|it| it == "=")?;
    Some(&row[begin..begin + end(&row[begin..], ";")])
}

/// The value of a field in `impl Default for TYPE`, by its path as `exec.per_node`.
pub(crate) fn default<'a>(row: &'a [String], of: &str, path: &str) -> Option<&'a [String]> {
    let head = ["impl", "Default", "for", of, "{"];
    let at = row.windows(5).position(|it| it.iter().eq(head))?;
    let begin = at + head.len();
    let mut rest = &row[begin..begin + end(&row[begin..], "")];
    for field in path.split('.') {
        let at = (0..rest.len().saturating_sub(2)).find(|&at| {
            let [before, name, colon, behind] = [at.wrapping_sub(1), at, at + 1, at + 2]
                .map(|at| rest.get(at).map_or("", String::as_str));
            name == field && colon == ":" && behind != ":" && matches!(before, "{" | ",")
        })?;
        rest = &rest[at + 2..];
        rest = &rest[..end(rest, ",")];
    }
    Some(rest)
}

/// Where a row ends: before `mark`, or before the bracket that closes what it is in.
fn end(row: &[String], mark: &str) -> usize {
    let mut depth = 0_usize;
    for (at, token) in row.iter().enumerate() {
        match token.as_str() {
            token if depth == 0 && token == mark => return at,
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 0 => return at,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
    }
    row.len()
}

/// Works an expression out; `named` knows the constants in it. What it does not understand is an error that says so.
pub(crate) fn evaluate(
    row: &[String],
    named: &dyn Fn(&str) -> Result<Value, String>,
) -> Result<Value, String> {
    let mut reading = Reading { row, at: 0, named };
    let value = reading.shift()?;
    match reading.at == row.len() {
        true => Ok(value),
        false => Err(format!("`{}` is not understood", row.join(" "))),
    }
}

struct Reading<'a> {
    row: &'a [String],
    at: usize,
    named: &'a dyn Fn(&str) -> Result<Value, String>,
}

impl Reading<'_> {
    fn next_is(&mut self, tokens: &[&str]) -> bool {
        let is = self.row[self.at..].iter().take(tokens.len()).eq(tokens);
        if is {
            self.at += tokens.len();
        }
        is
    }

    fn shift(&mut self) -> Result<Value, String> {
        let mut value = self.sum()?;
        while self.next_is(&["<", "<"]) {
            value = numbers(value, self.sum()?, |a, b| a << b)?;
        }
        Ok(value)
    }

    fn sum(&mut self) -> Result<Value, String> {
        let mut value = self.product()?;
        loop {
            if self.next_is(&["+"]) {
                value = numbers(value, self.product()?, |a, b| a + b)?;
            } else if self.next_is(&["-"]) {
                value = numbers(value, self.product()?, |a, b| a - b)?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<Value, String> {
        let mut value = self.one()?;
        while self.next_is(&["*"]) {
            value = match (value, self.one()?) {
                (Value::Number(times), Value::Time(it))
                | (Value::Time(it), Value::Number(times)) => {
                    Value::Time(it * u32::try_from(times).map_err(|it| it.to_string())?)
                }
                (a, b) => numbers(a, b, |a, b| a * b)?,
            };
        }
        Ok(value)
    }

    fn one(&mut self) -> Result<Value, String> {
        if self.next_is(&["("]) {
            let value = self.shift()?;
            return match self.next_is(&[")"]) {
                true => Ok(value),
                false => Err("a bracket stays open".to_owned()),
            };
        }
        let mut name = self.row.get(self.at).cloned().unwrap_or_default();
        self.at += 1;
        if name.starts_with(|it: char| it.is_ascii_digit()) {
            return literal(&name);
        }
        while self.next_is(&[":", ":"]) {
            name = self.row.get(self.at).cloned().unwrap_or_default();
            self.at += 1;
        }
        if !self.next_is(&["("]) {
            return (self.named)(&name);
        }
        let argument = self.shift()?;
        self.next_is(&[")"]);
        match (name.as_str(), argument) {
            ("from_secs", Value::Number(it)) => Ok(Value::Time(Duration::from_secs(it))),
            ("from_millis", Value::Number(it)) => Ok(Value::Time(Duration::from_millis(it))),
            ("from_micros", Value::Number(it)) => Ok(Value::Time(Duration::from_micros(it))),
            _ => Err(format!("`{name}` is not understood")),
        }
    }
}

fn numbers(a: Value, b: Value, work: impl Fn(u64, u64) -> u64) -> Result<Value, String> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => Ok(Value::Number(work(a, b))),
        _ => Err("times and numbers do not go together".to_owned()),
    }
}

fn literal(text: &str) -> Result<Value, String> {
    let plain = text.replace('_', "");
    let digits = plain.trim_end_matches(|it: char| !it.is_ascii_digit());
    // As in `5_u64`, whose suffix ends with digits too.
    let digits = digits.split(['u', 'i']).next().unwrap_or_default();
    let number = digits.parse().map_err(|it| format!("{text}: {it}"))?;
    Ok(Value::Number(number))
}

/// As people write it.
pub(crate) fn shown(value: Value, is_bytes: bool) -> String {
    match value {
        Value::Number(it) if is_bytes => {
            let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
            let unit = units
                .iter()
                .find(|(_, bits)| it != 0 && it % (1 << bits) == 0);
            unit.map_or(format!("{} B", grouped(it)), |(name, bits)| {
                format!("{} {name}", grouped(it >> bits))
            })
        }
        Value::Number(it) => grouped(it),
        Value::Time(it) if it.subsec_millis() != 0 => format!("{} ms", it.as_millis()),
        Value::Time(it) => match it.as_secs() {
            seconds if seconds >= 7200 && seconds % 3600 == 0 => format!("{} h", seconds / 3600),
            seconds if seconds >= 120 && seconds % 60 == 0 => format!("{} min", seconds / 60),
            seconds => format!("{seconds} s"),
        },
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && digits.len() > 4 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn constants_and_defaults_are_worked_out_as_the_compiler_does() {
    let source = "
        const A: usize = 64 << 10;
        const B: Duration = Duration::from_secs(24 * 3600);
        impl It { pub const C: u64 = 2 * (A as_is + 1_000_u64) - 1; }
        impl Default for Config {
            fn default() -> Self {
                const HOUR: Duration = Duration::from_secs(3600);
                Self { a: String::new(), b: 168 * HOUR, deep: Deep { a: 7, b: Other::A }, c: 1 }
            }
        }";
    let row = crate::sources::tokens(&source.replace("as_is", ""));
    let named = |name: &str| match name {
        "A" => Ok(Value::Number(65536)),
        "HOUR" => Ok(Value::Time(Duration::from_secs(3600))),
        other => Err(format!("{other} is unknown")),
    };
    let of = |tokens: Option<&[String]>| {
        let value = evaluate(tokens.ok_or("not found")?, &named)?;
        Ok::<_, String>(shown(value, true))
    };
    assert_eq!(of(constant(&row, "A")).unwrap(), "64 KiB");
    assert_eq!(of(constant(&row, "B")).unwrap(), "24 h");
    assert_eq!(of(constant(&row, "C")).unwrap(), "133,071 B");
    assert_eq!(of(default(&row, "Config", "b")).unwrap(), "168 h");
    assert_eq!(of(default(&row, "Config", "deep.a")).unwrap(), "7 B");
    assert_eq!(of(default(&row, "Config", "deep.b")).unwrap(), "64 KiB");
    assert_eq!(of(default(&row, "Config", "c")).unwrap(), "1 B");
    assert!(of(default(&row, "Config", "a")).is_err());
    assert!(of(default(&row, "Config", "d")).is_err());
    assert!(of(constant(&row, "D")).is_err());
}
