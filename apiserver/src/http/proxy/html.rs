//! Links in pages that come through `proxy`: a path of the backend's is another one seen from outside.
//!
//! A tokenizer finds where addresses stand; all else of a page goes on byte by byte as it came. html5gum has no
//! dependencies of its own; lol_html, which streams, brings tables for all encodings, a CSS parser and a selector engine
//! for what one list of attributes says.

use std::io::{self, Read as _, Write as _};

use flate2::Compression;
use flate2::read::{DeflateDecoder, GzDecoder};
use flate2::write::{DeflateEncoder, GzEncoder};
use html5gum::emitters::callback::{CallbackEmitter, CallbackEvent};
use html5gum::{Span, Tokenizer};

/// Which attributes of which elements are addresses.
const ADDRESSES: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// How a page is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    /// Without zlib's frame, whatever the standard says: as browsers and Go take it.
    Deflate,
}

impl Packing {
    /// `None` for what is not understood here, which goes on as it is.
    pub fn of(content_encoding: &str) -> Option<Packing> {
        match content_encoding {
            "" => Some(Packing::Plain),
            "gzip" => Some(Packing::Gzip),
            "deflate" => Some(Packing::Deflate),
            _ => None,
        }
    }

    /// `None` when more than `limit` comes out.
    fn unpack(self, packed: &[u8], limit: usize) -> io::Result<Option<Vec<u8>>> {
        let mut page = Vec::new();
        let most = limit as u64 + 1;
        match self {
            Packing::Plain => packed.take(most).read_to_end(&mut page)?,
            Packing::Gzip => GzDecoder::new(packed).take(most).read_to_end(&mut page)?,
            Packing::Deflate => DeflateDecoder::new(packed).take(most).read_to_end(&mut page)?,
        };
        Ok((page.len() <= limit).then_some(page))
    }

    fn pack(self, page: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Packing::Plain => Ok(page),
            Packing::Gzip => {
                let mut out = GzEncoder::new(Vec::new(), Compression::fast());
                out.write_all(&page)?;
                out.finish()
            }
            Packing::Deflate => {
                let mut out = DeflateEncoder::new(Vec::new(), Compression::fast());
                out.write_all(&page)?;
                out.finish()
            }
        }
    }
}

/// A packed page with its addresses changed; `None` when none was, or it is larger than `limit` unpacked.
pub fn rewrite(
    packed: &[u8],
    packing: Packing,
    limit: usize,
    change: impl Fn(&str) -> String,
) -> io::Result<Option<Vec<u8>>> {
    let Some(page) = packing.unpack(packed, limit)? else { return Ok(None) };
    change_addresses(&page, change).map(|page| packing.pack(page)).transpose()
}

struct Change {
    span: Span<usize>,
    address: String,
}

fn change_addresses(page: &[u8], change: impl Fn(&str) -> String) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(page.len());
    let mut done = 0;
    for Change { span, address } in changes(page, &change) {
        out.extend_from_slice(&page[done..span.start]);
        out.extend_from_slice(escape(&address).as_bytes());
        done = span.end;
    }
    if done == 0 {
        return None;
    }
    out.extend_from_slice(&page[done..]);
    Some(out)
}

/// In the order in which they stand.
fn changes(page: &[u8], change: &dyn Fn(&str) -> String) -> Vec<Change> {
    let mut attributes: &[&str] = &[];
    let mut is_address = false;
    let mut emitter = CallbackEmitter::new(|event: CallbackEvent<'_>, span: Span<usize>| -> Option<Change> {
        match event {
            CallbackEvent::OpenStartTag { name } => {
                let known = ADDRESSES.iter().find(|(element, _)| element.as_bytes() == name);
                attributes = known.map_or(&[], |(_, attributes)| attributes);
            }
            CallbackEvent::EndTag { .. } => attributes = &[],
            CallbackEvent::AttributeName { name } => {
                is_address = attributes.iter().any(|attribute| attribute.as_bytes() == name);
            }
            CallbackEvent::AttributeValue { value } if is_address => {
                let old = std::str::from_utf8(value).ok()?;
                let address = change(old);
                // What the page means by entities stands there otherwise; nothing but the value may be replaced.
                let written = page.get(span.start..span.end)?;
                let is_value = written == value || written.contains(&b'&');
                return (is_value && address != old).then_some(Change { span, address });
            }
            _ => {}
        }
        None
    });
    // Scripts and styles hold no elements.
    emitter.naively_switch_states(true);
    Tokenizer::new_with_emitter(page, emitter).flatten().collect()
}

/// As a value between quotes, or without.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            ' ' => out.push_str("&#32;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixed(address: &str) -> String {
        if address.starts_with('/') { format!("/p/proxy{address}") } else { address.to_owned() }
    }

    fn page(text: &str) -> String {
        let changed = change_addresses(text.as_bytes(), prefixed).unwrap_or_else(|| text.as_bytes().to_vec());
        String::from_utf8(changed).unwrap()
    }

    #[test]
    fn addresses_change_and_nothing_else() {
        for (before, after) in [
            (r#"<a href="/x">y</a>"#, r#"<a href="/p/proxy/x">y</a>"#),
            (r"<A class=b  HREF='/x?a=1&amp;b=2#c' >", r"<A class=b  HREF='/p/proxy/x?a=1&amp;b=2#c' >"),
            (r"<img src=/x alt=/y>", r"<img src=/p/proxy/x alt=/y>"),
            (
                "<p>é\r\n<script src=\"/x\">let a = '<a href=\"/y\">';</script>\r\n<a\r\nhref=\"/z\">",
                "<p>é\r\n<script src=\"/p/proxy/x\">let a = '<a href=\"/y\">';</script>\r\n<a\r\nhref=\"/p/proxy/z\">",
            ),
            (
                r#"<video poster="/a" src='/b'></video><a href='c'>"#,
                r#"<video poster="/p/proxy/a" src='/p/proxy/b'></video><a href='c'>"#,
            ),
            (r#"<!-- <a href="/x"> --><p title="/x">"#, r#"<!-- <a href="/x"> --><p title="/x">"#),
            (r#"<a href="/x"#, r#"<a href="/x"#),
            (r#"<a href="/" href="/second">"#, r#"<a href="/p/proxy/" href="/p/proxy/second">"#),
        ] {
            assert_eq!(page(before), after);
        }
    }

    #[test]
    fn what_is_put_in_stays_a_value() {
        let change = |_: &str| "/\"><script>&' x".to_owned();
        let changed = change_addresses(br#"<a href="/x">"#, change).unwrap();
        assert_eq!(String::from_utf8(changed).unwrap(), r#"<a href="/&#34;&gt;&lt;script&gt;&amp;&#39;&#32;x">"#);
    }

    #[test]
    fn packed_pages_are_packed_again_and_bombs_go_on_as_they_are() {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Deflate] {
            let packed = packing.pack(b"<a href=/x>".to_vec()).unwrap();
            let changed = rewrite(&packed, packing, 100, prefixed).unwrap().unwrap();
            assert_eq!(packing.unpack(&changed, 100).unwrap().unwrap(), b"<a href=/p/proxy/x>");
            let bomb = packing.pack(vec![b'<'; 1 << 20]).unwrap();
            assert!(rewrite(&bomb, packing, 1000, prefixed).unwrap().is_none());
        }
        assert!(rewrite(b"no gzip", Packing::Gzip, 100, prefixed).is_err());
        assert_eq!(Packing::of("br"), None);
    }

    /// What a pod serves may be anything: nothing is read beyond its end, and what is not an address stays.
    #[test]
    fn no_page_is_too_odd() {
        const PARTS: [&str; 18] = [
            "<",
            ">",
            "a",
            " ",
            "href",
            "=",
            "\"",
            "'",
            "/x",
            "&amp;",
            "&",
            "<!--",
            "-->",
            "<script>",
            "</script>",
            "\r\n",
            "\0",
            "é",
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        for _ in 0..20_000 {
            let text: String = (0..random(24)).map(|_| PARTS[random(PARTS.len())]).collect();
            let cut = &text.as_bytes()[..text.len() - random(2).min(text.len())];
            assert_eq!(change_addresses(cut, str::to_owned), None, "{text:?}");
            if let Some(changed) = change_addresses(cut, |old| format!("{old}?")) {
                assert!(changed.contains(&b'?'), "{text:?}");
            }
        }
    }
}
