//! SPDY/3.1 frames, as far as exec and attach need them: what kubectl speaks before 1.31.
//!
//! Clients compress their headers against a dictionary that the protocol defines; ours (all empty) go uncompressed in
//! stored blocks. Flow control is left out, as in the clients: neither side waits for window updates.

use api::budget::Budget;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status as Progress};
use thiserror::Error;

/// Section 2.6.10.1 of the protocol.
const DICTIONARY: &[u8] = include_bytes!("spdy/dictionary.bin");
const VERSION: u16 = 0x8003;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpdyError {
    #[error("a frame of type {0} is too short")]
    Short(u16),
    #[error("a frame of {0} bytes is too long")]
    Long(usize),
    #[error("the headers of a stream cannot be decompressed")]
    Compression,
    #[error("the headers of a stream are malformed")]
    Headers,
}

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Open {
        stream: u32,
        headers: Vec<(String, String)>,
    },
    Data {
        stream: u32,
        bytes: Bytes,
        last: bool,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Settings, window updates and what else needs no answer.
    Other,
}

/// Reads frames; headers share one compression context.
pub struct Reader {
    inflate: Decompress,
}

impl Reader {
    pub fn new() -> Self {
        Self { inflate: Decompress::new(true) }
    }

    /// The next frame, once all of it is there.
    pub fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        let Some(&[a, b, c, d, flags, x, y, z]) = buffer.first_chunk::<8>() else { return Ok(None) };
        let length = u32::from_be_bytes([0, x, y, z]) as usize;
        // Before it is waited for: what is waited for is kept.
        if length > Budget::CLIENT.frame {
            return Err(SpdyError::Long(length));
        }
        if buffer.len() < 8 + length {
            return Ok(None);
        }
        buffer.advance(8);
        let mut payload = buffer.split_to(length).freeze();
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Ok(Some(Frame::Data { stream, bytes: payload, last: flags & FIN != 0 }));
        }
        let kind = u16::from_be_bytes([c, d]);
        let mut word = || payload.try_get_u32().map_err(|_| SpdyError::Short(kind));
        Ok(Some(match kind {
            SYN_STREAM => {
                let stream = word()? & 0x7fff_ffff;
                word()?;
                payload.try_get_u16().map_err(|_| SpdyError::Short(kind))?;
                Frame::Open { stream, headers: parse(self.inflate(&payload)?.into())? }
            }
            RST_STREAM => Frame::Reset { stream: word()? & 0x7fff_ffff },
            PING => Frame::Ping { id: word()? },
            GOAWAY => Frame::GoAway,
            _ => Frame::Other,
        }))
    }

    /// Writes into room for as many headers as a stream may have, and fails when that is full: kubectl's take a few
    /// dozen bytes, and a frame may hold a thousand times its size.
    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut out = Vec::with_capacity(Budget::CLIENT.headers);
        while !input.is_empty() {
            let before = (self.inflate.total_in(), out.len());
            let progress = self.inflate.decompress_vec(input, &mut out, FlushDecompress::Sync);
            let needs_dictionary = progress.as_ref().err().is_some_and(|error| error.needs_dictionary().is_some());
            let taken = usize::try_from(self.inflate.total_in() - before.0).unwrap_or(input.len());
            input = input.get(taken..).unwrap_or_default();
            if needs_dictionary {
                self.inflate.set_dictionary(DICTIONARY).map_err(|_| SpdyError::Compression)?;
                continue;
            }
            match progress {
                Ok(Progress::Ok | Progress::BufError) if taken > 0 || out.len() > before.1 => {}
                _ => return Err(SpdyError::Compression),
            }
        }
        Ok(out)
    }
}

/// A count, then names and values, each with its length.
fn parse(mut block: Bytes) -> Result<Vec<(String, String)>, SpdyError> {
    fn text(block: &mut Bytes) -> Option<String> {
        let length = usize::try_from(block.try_get_u32().ok()?).ok()?;
        (length <= block.len()).then(|| String::from_utf8_lossy(&block.split_to(length)).into_owned())
    }
    let count = block.try_get_u32().map_err(|_| SpdyError::Headers)?;
    let mut out = Vec::new();
    for _ in 0..count {
        out.push((text(&mut block).ok_or(SpdyError::Headers)?, text(&mut block).ok_or(SpdyError::Headers)?));
    }
    Ok(out)
}

/// Writes frames.
#[derive(Default)]
pub struct Writer {
    /// The compressed stream's own header is sent once.
    started: bool,
}

impl Writer {
    /// Accepts a stream, with no headers.
    pub fn accept(&mut self, stream: u32) -> Bytes {
        let mut payload = BytesMut::new();
        payload.put_u32(stream);
        if !std::mem::replace(&mut self.started, true) {
            payload.put_slice(&[0x78, 0x01]);
        }
        // A stored block with the count, then an empty one, which makes the reader give out what it has.
        payload.put_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        control(SYN_REPLY, &payload)
    }

    pub fn pong(id: u32) -> Bytes {
        control(PING, &id.to_be_bytes())
    }

    /// Data of a stream.
    pub fn data(stream: u32, bytes: &[u8]) -> Bytes {
        data(stream, 0, bytes)
    }

    /// The last data of a stream, which closes our half of it.
    pub fn last(stream: u32, bytes: &[u8]) -> Bytes {
        data(stream, FIN, bytes)
    }
}

fn data(stream: u32, flags: u8, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes.len() + 8);
    out.put_u32(stream & 0x7fff_ffff);
    out.put_u32(u32::from(flags) << 24 | length(bytes));
    out.put_slice(bytes);
    out.freeze()
}

fn control(kind: u16, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 8);
    out.put_u16(VERSION);
    out.put_u16(kind);
    out.put_u32(length(payload));
    out.put_slice(payload);
    out.freeze()
}

/// Lengths have 24 bits; what we write is read in chunks far below that.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX) & 0x00ff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    fn open(deflate: &mut Compress, stream: u32, name: &str, value: &str) -> Vec<u8> {
        let mut block = vec![0, 0, 0, 1];
        for text in [name, value] {
            block.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            block.extend(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(1024);
        deflate.compress_vec(&block, &mut packed, FlushCompress::Sync).unwrap();
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend([0; 6]);
        payload.extend(packed);
        control(SYN_STREAM, &payload).to_vec()
    }

    #[test]
    fn streams_are_opened_with_shared_compression() {
        let mut deflate = Compress::new(Compression::default(), true);
        deflate.set_dictionary(DICTIONARY).unwrap();
        let mut wire = BytesMut::new();
        wire.extend(open(&mut deflate, 1, "streamtype", "error"));
        wire.extend(open(&mut deflate, 3, "streamtype", "stdout"));
        let mut reader = Reader::new();
        for (stream, value) in [(1, "error"), (3, "stdout")] {
            let headers = vec![("streamtype".to_owned(), value.to_owned())];
            assert_eq!(reader.take(&mut wire), Ok(Some(Frame::Open { stream, headers })));
        }
        assert_eq!(reader.take(&mut wire), Ok(None));
    }

    #[test]
    fn a_frame_waits_for_its_last_byte() {
        let whole = Writer::last(5, b"hello");
        let mut buffer = BytesMut::from(&whole[..whole.len() - 1]);
        assert_eq!(Reader::new().take(&mut buffer), Ok(None));
        buffer.extend_from_slice(&whole[whole.len() - 1..]);
        let data = Frame::Data { stream: 5, bytes: Bytes::from_static(b"hello"), last: true };
        assert_eq!(Reader::new().take(&mut buffer), Ok(Some(data)));
        assert!(buffer.is_empty());
    }

    #[test]
    fn replies_inflate_to_no_headers() {
        let mut writer = Writer::default();
        let mut reader = Reader::new();
        for stream in [1, 3] {
            let frame = writer.accept(stream);
            assert_eq!(reader.inflate(&frame[12..]), Ok(vec![0, 0, 0, 0]));
        }
    }

    #[test]
    fn headers_that_inflate_beyond_their_budget_are_refused() {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(DICTIONARY).unwrap();
        let small = open(&mut deflate, 1, "streamtype", &"x".repeat(10_000));
        let bomb = open(&mut deflate, 3, "streamtype", &"x".repeat(400_000));
        assert!(bomb.len() < 1024, "{}", bomb.len());
        let mut reader = Reader::new();
        assert!(matches!(reader.take(&mut BytesMut::from(&small[..])), Ok(Some(Frame::Open { .. }))));
        assert_eq!(reader.take(&mut BytesMut::from(&bomb[..])), Err(SpdyError::Compression));
    }

    #[test]
    fn a_frame_beyond_the_budget_is_not_waited_for() {
        let mut head = BytesMut::from(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff][..]);
        assert_eq!(Reader::new().take(&mut head), Err(SpdyError::Long(0xff_ffff)));
    }

    #[test]
    fn nonsense_is_refused() {
        let mut buffer = BytesMut::from(&control(SYN_STREAM, &[0; 4])[..]);
        assert_eq!(Reader::new().take(&mut buffer), Err(SpdyError::Short(SYN_STREAM)));
        let mut buffer = BytesMut::from(&control(SYN_STREAM, &[7; 30])[..]);
        assert_eq!(Reader::new().take(&mut buffer), Err(SpdyError::Compression));
    }
}
