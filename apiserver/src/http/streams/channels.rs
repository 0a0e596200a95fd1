//! What a client's WebSocket messages say: the first byte names a channel, the rest is for it.

use serde::Deserialize;

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const STATUS: u8 = 3;
pub const RESIZE: u8 = 4;
pub const CLOSE: u8 = 255;

/// One message to a process.
#[derive(Debug, PartialEq, Eq)]
pub enum Input<'a> {
    Data(&'a [u8]),
    /// No more data comes.
    End,
    Resize {
        width: u16,
        height: u16,
    },
}

/// A terminal's, as clients write it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    pub width: u16,
    pub height: u16,
}

/// `None` for what no process is told.
pub fn input(message: &[u8]) -> Option<Input<'_>> {
    match message.split_first()? {
        (&STDIN, data) => Some(Input::Data(data)),
        (&CLOSE, &[STDIN]) => Some(Input::End),
        (&RESIZE, data) => {
            let Size { width, height } = serde_json::from_slice(data).ok()?;
            Some(Input::Resize { width, height })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_their_channel_means() {
        for (message, wanted) in [
            (&b"\0abc"[..], Some(Input::Data(b"abc"))),
            (b"\xff\0", Some(Input::End)),
            (b"\x04{\"Width\":80,\"Height\":24}", Some(Input::Resize { width: 80, height: 24 })),
            (b"\x04{\"Width\":80}", None),
            (b"\xff\x01", None),
            (b"\x01x", None),
            (b"", None),
        ] {
            assert_eq!(input(message), wanted, "{message:?}");
        }
    }
}
