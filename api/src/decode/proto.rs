//! Protobuf request bodies: the envelope, and messages read by the tags of the type table.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::json::Json;
use crate::budget::{Budget, Meter};
use crate::schema::{Field, Shape, Type};

/// The contents of the envelope.
#[derive(Debug, Default)]
pub struct Envelope<'a> {
    pub api_version: String,
    pub kind: String,
    pub raw: &'a [u8],
}

const MAGIC: &[u8] = b"k8s\0";

/// `k8s\0` and an `Unknown` message.
pub fn envelope(bytes: &[u8]) -> Result<Envelope<'_>, String> {
    let Some(body) = bytes.strip_prefix(MAGIC) else {
        return Err("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into());
    };
    if body.is_empty() {
        return Err("empty body".into());
    }
    let mut out = Envelope::default();
    for entry in fields(body) {
        match entry? {
            (1, Wire::Bytes(meta)) => {
                for entry in fields(meta) {
                    match entry? {
                        (1, Wire::Bytes(text)) => out.api_version = string(text),
                        (2, Wire::Bytes(text)) => out.kind = string(text),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(raw)) => out.raw = raw,
            _ => {}
        }
    }
    Ok(out)
}

/// A message of a type as JSON.
pub fn message(ty: &Type, bytes: &[u8]) -> Result<Json, String> {
    Reader { meter: Budget::CLIENT.meter() }.message(ty, bytes)
}

/// Reads messages inside messages within one budget.
struct Reader {
    meter: Meter,
}

impl Reader {
    fn message(&mut self, ty: &Type, bytes: &[u8]) -> Result<Json, String> {
        let mut entries = Vec::new();
        self.read(ty, bytes, &mut entries)?;
        Ok(Json::Object(entries))
    }

    /// Puts a message's fields among those read before: inline messages share them with what they stand in.
    fn read(&mut self, ty: &Type, bytes: &[u8], entries: &mut Vec<(String, Json)>) -> Result<(), String> {
        self.meter.enter()?;
        for entry in fields(bytes) {
            let (tag, wire) = entry?;
            let Some(field) = ty.by_tag(tag) else { continue };
            match (field.shape.ty(), wire) {
                (Some(inner), Wire::Bytes(bytes)) if field.inline => self.read(inner, bytes, entries)?,
                _ if field.inline => {}
                _ => self.add(entries, field, wire)?,
            }
        }
        self.meter.leave();
        Ok(())
    }

    fn add(&mut self, entries: &mut Vec<(String, Json)>, field: &Field, wire: Wire) -> Result<(), String> {
        let slot = entries.iter_mut().find(|(name, _)| *name == field.name);
        match (&field.shape, slot) {
            (Shape::List(item), Some((_, Json::List(items)))) => self.repeated(items, item, wire)?,
            (Shape::List(item), _) => {
                let mut items = Vec::new();
                self.repeated(&mut items, item, wire)?;
                entries.push((field.name.to_string(), Json::List(items)));
            }
            (Shape::Map(item), Some((_, Json::Object(map)))) => map.push(self.map_entry(item, wire)?),
            (Shape::Map(item), _) => {
                entries.push((field.name.to_string(), Json::Object(vec![self.map_entry(item, wire)?])))
            }
            (shape, Some(slot)) => slot.1 = self.single(shape, wire)?,
            (shape, None) => entries.push((field.name.to_string(), self.single(shape, wire)?)),
        }
        Ok(())
    }

    /// One element, or packed numbers.
    fn repeated(&mut self, items: &mut Vec<Json>, item: &Shape, wire: Wire) -> Result<(), String> {
        if let (Shape::Int32 | Shape::Int64, Wire::Bytes(mut packed)) = (item, wire) {
            while !packed.is_empty() {
                self.meter.node()?;
                items.push(integer(varint(&mut packed)?));
            }
            return Ok(());
        }
        items.push(self.single(item, wire)?);
        Ok(())
    }

    fn map_entry(&mut self, item: &Shape, wire: Wire) -> Result<(String, Json), String> {
        let Wire::Bytes(bytes) = wire else { return Err(ill("map entry")) };
        let (mut key, mut value) = (String::new(), None);
        for entry in fields(bytes) {
            match entry? {
                (1, Wire::Bytes(text)) => key = string(text),
                (2, wire) => value = Some(self.single(item, wire)?),
                _ => {}
            }
        }
        let empty = || match item {
            Shape::String | Shape::Bytes => Json::String(String::new()),
            _ => Json::Null,
        };
        Ok((key, value.unwrap_or_else(empty)))
    }

    fn single(&mut self, shape: &Shape, wire: Wire) -> Result<Json, String> {
        self.meter.node()?;
        Ok(match (shape, wire) {
            (Shape::String, Wire::Bytes(text)) => Json::String(string(text)),
            (Shape::Bytes, Wire::Bytes(bytes)) => Json::String(STANDARD.encode(bytes)),
            (Shape::Bool, Wire::Varint(n)) => Json::Bool(n != 0),
            (Shape::Int32 | Shape::Int64, Wire::Varint(n)) => integer(n),
            (Shape::Float, Wire::Fixed64(bits)) => Json::Number(f64::from_bits(bits).to_string()),
            (Shape::Struct(_), Wire::Bytes(bytes)) => match shape.ty() {
                Some(ty) => self.message(ty, bytes)?,
                None => Json::Null,
            },
            (Shape::Quantity, Wire::Bytes(bytes)) => text_of(bytes, 1)?.map_or(Json::String("0".into()), Json::String),
            (Shape::Any, Wire::Bytes(bytes)) => self.raw(bytes)?,
            (Shape::Time, Wire::Bytes(bytes)) => time(bytes, crate::time::rfc3339)?,
            (Shape::MicroTime, Wire::Bytes(bytes)) => time(bytes, crate::time::micro)?,
            (Shape::Duration, Wire::Bytes(bytes)) => Json::String(format!("{}ns", number_of(bytes, 1)?)),
            (Shape::IntOrString, Wire::Bytes(bytes)) => match number_of(bytes, 1)? {
                0 => integer(number_of(bytes, 2)?),
                _ => Json::String(text_of(bytes, 3)?.unwrap_or_default()),
            },
            // A named list type is a message with one repeated field.
            (Shape::List(item), Wire::Bytes(bytes)) => {
                let mut items = Vec::new();
                for entry in fields(bytes) {
                    if let (1, wire) = entry? {
                        self.repeated(&mut items, item, wire)?;
                    }
                }
                Json::List(items)
            }
            _ => return Err(ill("field")),
        })
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<Json, String> {
        for entry in fields(bytes) {
            if let (1, Wire::Bytes(json)) = entry? {
                return if json.is_empty() { Ok(Json::Null) } else { super::json::parse_within(json, &mut self.meter) };
            }
        }
        Ok(Json::Null)
    }
}

fn time(bytes: &[u8], write: fn(jiff::Timestamp) -> String) -> Result<Json, String> {
    let seconds = number_of(bytes, 1)?.cast_signed();
    let nanos = i32::try_from(number_of(bytes, 2)?.cast_signed()).unwrap_or(0);
    if bytes.is_empty() {
        return Ok(Json::Null);
    }
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| ill("time"))?;
    Ok(Json::String(write(time)))
}

fn number_of(bytes: &[u8], wanted: u32) -> Result<u64, String> {
    for entry in fields(bytes) {
        if let (tag, Wire::Varint(n)) = entry?
            && tag == wanted
        {
            return Ok(n);
        }
    }
    Ok(0)
}

fn text_of(bytes: &[u8], wanted: u32) -> Result<Option<String>, String> {
    for entry in fields(bytes) {
        if let (tag, Wire::Bytes(text)) = entry?
            && tag == wanted
        {
            return Ok(Some(string(text)));
        }
    }
    Ok(None)
}

fn integer(n: u64) -> Json {
    Json::Number(n.cast_signed().to_string())
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ill(what: &str) -> String {
    format!("proto: wrong wireType for {what}")
}

#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

fn fields(mut rest: &[u8]) -> impl Iterator<Item = Result<(u32, Wire<'_>), String>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let entry = next_field(&mut rest);
        if entry.is_err() {
            rest = &[];
        }
        Some(entry)
    })
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Result<(u32, Wire<'a>), String> {
    let key = varint(rest)?;
    let tag = u32::try_from(key >> 3).map_err(|_| "proto: illegal tag".to_string())?;
    let wire = match key & 7 {
        0 => Wire::Varint(varint(rest)?),
        1 => {
            let bytes = take(rest, 8)?;
            Wire::Fixed64(u64::from_le_bytes(bytes.try_into().map_err(|_| ill("fixed64"))?))
        }
        2 => {
            let length = usize::try_from(varint(rest)?).map_err(|_| "unexpected EOF".to_string())?;
            Wire::Bytes(take(rest, length)?)
        }
        5 => {
            take(rest, 4)?;
            Wire::Fixed32
        }
        other => return Err(format!("proto: illegal wireType {other}")),
    };
    Ok((tag, wire))
}

fn varint(rest: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or("unexpected EOF")?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("proto: integer overflow".into())
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    let (head, tail) = rest.split_at_checked(length).ok_or("unexpected EOF")?;
    *rest = tail;
    Ok(head)
}
