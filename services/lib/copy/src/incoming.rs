//! An archive that comes in pieces from another thread.

use std::io::{self, Read};

/// A part of what arrives.
#[derive(Debug)]
pub enum Chunk {
    Bytes(Vec<u8>),
    /// It was the last one.
    End,
}

/// Reads what `next` brings, which waits for it. Nothing in place of an end means that it has broken off.
#[derive(Debug)]
pub struct Incoming<F> {
    next: F,
    bytes: Vec<u8>,
    read: usize,
    ended: bool,
}

impl<F: FnMut() -> Option<Chunk>> Incoming<F> {
    pub fn new(next: F) -> Self {
        Self {
            next,
            bytes: vec![],
            read: 0,
            ended: false,
        }
    }
}

impl<F: FnMut() -> Option<Chunk>> Read for Incoming<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.bytes.len() && !self.ended {
            match (self.next)() {
                Some(Chunk::Bytes(bytes)) => (self.bytes, self.read) = (bytes, 0),
                Some(Chunk::End) => self.ended = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let rest = &self.bytes[self.read..];
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        self.read += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(chunks: Vec<Chunk>) -> io::Result<String> {
        let mut chunks = chunks.into_iter();
        let mut text = String::new();
        Incoming::new(move || chunks.next()).read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn pieces_are_read_as_one_and_what_has_no_end_has_broken_off() {
        let piece = |text: &str| Chunk::Bytes(text.into());
        let whole = all(vec![piece("a"), piece(""), piece("bc"), Chunk::End]);
        assert_eq!(whole.unwrap(), "abc");
        let broken = all(vec![piece("a")]).unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::ConnectionAborted);
    }
}
