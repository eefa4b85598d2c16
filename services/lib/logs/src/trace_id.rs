//! Which trace a line belongs to, by its own words.

const KEY: &[u8] = b"trace_id";

/// The word behind the first `trace_id`, with `=` or `:` between them, blanks and quotes around those.
pub fn trace_id(text: &[u8]) -> Option<&str> {
    let mut from = 0;
    while let Some(found) = text[from..].windows(KEY.len()).position(|it| it == KEY) {
        from += found + KEY.len();
        if let Some(word) = word_after_key(&text[from..]) {
            return str::from_utf8(word).ok();
        }
    }
    None
}

fn word_after_key(rest: &[u8]) -> Option<&[u8]> {
    let rest = after_blanks(after_quote(rest));
    let rest = rest
        .strip_prefix(b"=")
        .or_else(|| rest.strip_prefix(b":"))?;
    let rest = after_quote(after_blanks(rest));
    let is_word = |it: &u8| it.is_ascii_alphanumeric() || *it == b'_' || *it == b'-';
    let end = rest
        .iter()
        .position(|it| !is_word(it))
        .unwrap_or(rest.len());
    (end > 0).then(|| &rest[..end])
}

fn after_quote(text: &[u8]) -> &[u8] {
    match text {
        [b'"' | b'\'', rest @ ..] => rest,
        _ => text,
    }
}

fn after_blanks(text: &[u8]) -> &[u8] {
    text.trim_ascii_start()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn the_first_trace_id_of_a_line_is_found() {
        let cases: &[(&str, Option<&str>)] = &[
            ("trace_id=abc",                          Some("abc")),
            ("GET / trace_id = abc done",             Some("abc")),
            (r#"{"trace_id": "4bf92f35", "a": 1}"#,   Some("4bf92f35")),
            ("{'trace_id':'x-1'}",                    Some("x-1")),
            ("trace_id=a trace_id=b",                 Some("a")),
            ("trace_id trace_id: b",                  Some("b")),
            ("my_trace_id=7",                         Some("7")),
            ("trace_id",                              None),
            ("trace_id=",                             None),
            ("trace_id abc",                          None),
            ("trace id=abc",                          None),
            ("",                                      None),
        ];
        for (text, expected) in cases {
            assert_eq!(trace_id(text.as_bytes()), *expected, "{text}");
        }
        assert_eq!(trace_id(b"\xff trace_id=a\xff"), Some("a"));
    }
}
