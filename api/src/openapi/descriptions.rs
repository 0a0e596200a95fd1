//! What types and fields are for, in Kubernetes' own words: kept compressed, and read only while a document is made.

use std::collections::HashMap;
use std::io::Read;

use flate2::read::GzDecoder;

/// Made by `data/describe.py`.
const PACKED: &[u8] = include_bytes!("../../data/descriptions.txt.gz");
/// Of the kinds that are ours.
const OWN: &str = include_str!("../../data/own/descriptions.txt");

/// The descriptions of all types.
pub struct Descriptions {
    /// By OpenAPI name: the type's own, then those of its fields.
    types: HashMap<String, (String, HashMap<String, String>)>,
}

impl Descriptions {
    pub fn read() -> Self {
        let mut text = String::new();
        GzDecoder::new(PACKED).read_to_string(&mut text).expect("a file of ours: a test reads it");
        text.push_str(OWN);
        let mut types = HashMap::new();
        let mut current: Option<&mut (String, HashMap<String, String>)> = None;
        for (name, description) in text.lines().filter_map(|line| line.split_once('\t')) {
            let description: String = serde_json::from_str(description).unwrap_or_default();
            match (name.strip_prefix(' '), &mut current) {
                (Some(field), Some((_, fields))) => drop(fields.insert(field.to_owned(), description)),
                (Some(_), None) => {}
                (None, _) => {
                    current = Some(types.entry(name.to_owned()).or_insert((description, HashMap::new())));
                }
            }
        }
        Self { types }
    }

    pub fn of_type(&self, name: &str) -> Option<&str> {
        self.types.get(name).map(|(text, _)| text.as_str()).filter(|text| !text.is_empty())
    }

    pub fn of_field(&self, name: &str, field: &str) -> Option<&str> {
        self.types.get(name)?.1.get(field).map(String::as_str).filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Registry;

    #[test]
    fn every_kind_and_most_fields_are_described() {
        let all = Descriptions::read();
        let (mut fields, mut described) = (0, 0);
        for kind in Registry::builtin().iter() {
            let ty = kind.schema.ty();
            assert!(all.of_type(&ty.openapi).is_some(), "{}", ty.openapi);
            fields += ty.fields.len();
            described += ty.fields.iter().filter(|field| all.of_field(&ty.openapi, &field.name).is_some()).count();
        }
        assert!(described * 10 >= fields * 9, "{described} of {fields}");
        let image = all.of_field("io.k8s.api.core.v1.Container", "image").unwrap();
        assert!(image.starts_with("Container image name."), "{image}");
        assert!(all.of_field("io.k8s.api.core.v1.Volume", "hostPath").is_some(), "of what is inlined too");
    }
}
