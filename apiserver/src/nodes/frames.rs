//! What goes through a tunnel for one session: frames, each of one kind, a length of four bytes (big-endian) and so many bytes.

use std::io;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

/// The longest frame that is read, bytes: a pod with its options is no longer.
const LONGEST: u32 = 8 << 20;
/// Bytes read from a stream at a time.
const CHUNK: usize = 16 << 10;
/// Frames that may wait for whoever reads them.
const QUEUE: usize = 16;

/// Kinds are numbers on the wire; whoever meets one that it does not know passes over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// JSON: what is asked for; comes first.
    Open = 0,
    Stdin = 1,
    /// No more of it.
    StdinEnd = 2,
    Stdout = 3,
    Stderr = 4,
    /// JSON: the terminal's size.
    Resize = 5,
    /// JSON: how it ended; comes last.
    Exit = 6,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        let all = [Self::Open, Self::Stdin, Self::StdinEnd, Self::Stdout, Self::Stderr, Self::Resize, Self::Exit];
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}

pub fn frame(kind: Kind, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 5);
    out.put_u8(kind as u8);
    out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.put_slice(payload);
    out.freeze()
}

/// The next frame of a known kind; `None` at the end.
pub async fn next<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<(Kind, Vec<u8>)>> {
    loop {
        let number = match from.read_u8().await {
            Ok(number) => number,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = from.read_u32().await?;
        if length > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length as usize];
        from.read_exact(&mut payload).await?;
        if let Some(kind) = Kind::of(number) {
            return Ok(Some((kind, payload)));
        }
    }
}

/// Sends what comes from a stream until it ends, or nobody takes it any more.
pub async fn pump<R: AsyncRead + Unpin>(from: Option<R>, kind: Kind, to: &mpsc::Sender<Bytes>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send(frame(kind, &buffer[..count])).await.is_err() {
            return;
        }
    }
}

/// The same without frames.
pub async fn pump_raw<R: AsyncRead + Unpin>(mut from: R, to: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
            return;
        }
    }
}

/// A body that is written while it goes.
pub fn body() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let stream = futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|bytes| (Ok::<Bytes, io::Error>(bytes), receiver))
    });
    (sender, Body::from_stream(stream))
}

/// A body as a stream of bytes.
pub fn reader(body: Body) -> impl AsyncRead + Send + Unpin + 'static {
    StreamReader::new(body.into_data_stream().map_err(io::Error::other).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_out_as_they_went_in() {
        let (sender, body) = body();
        let mut unknown = frame(Kind::Exit, b"later").to_vec();
        unknown[0] = 99;
        for part in [frame(Kind::Open, b"{}"), unknown.into(), frame(Kind::Stdin, b"")] {
            sender.send(part).await.unwrap();
        }
        drop(sender);
        let mut reader = reader(body);
        assert_eq!(next(&mut reader).await.unwrap(), Some((Kind::Open, b"{}".to_vec())));
        assert_eq!(next(&mut reader).await.unwrap(), Some((Kind::Stdin, Vec::new())));
        assert_eq!(next(&mut reader).await.unwrap(), None);
        let mut huge = &[3, 255, 255, 255, 255][..];
        assert_eq!(next(&mut huge).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut torn = &[3, 0, 0, 0, 9, 1][..];
        assert_eq!(next(&mut torn).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
