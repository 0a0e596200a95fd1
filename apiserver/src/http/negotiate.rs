//! In which form an answer is given, and in which form a body comes.

use api::decode::MediaType;
use api::discovery::Aggregated;
use api::status::Status;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    Table,
    Partial,
    PartialList,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    pub form: Form,
    pub encoding: Encoding,
}

impl Accepted {
    pub const PLAIN_JSON: Self = Self { form: Form::Plain, encoding: Encoding::Json };
}

pub const OFFERED: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const OFFERED_STREAMS: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

/// One member of an `Accept` header.
struct Media<'a> {
    type_: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Media<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let type_ = parts.next().unwrap_or_default();
        Self { type_, parameters: parts.filter_map(|part| part.split_once('=')).collect() }
    }

    fn parameter(&self, name: &str) -> &'a str {
        self.parameters.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    fn form(&self) -> Option<Form> {
        let group = self.parameter("g");
        match (self.parameter("as"), group, self.parameter("v")) {
            ("", ..) => Some(Form::Plain),
            ("Table", "meta.k8s.io", "v1") => Some(Form::Table),
            ("PartialObjectMetadata", "meta.k8s.io", "v1") => Some(Form::Partial),
            ("PartialObjectMetadataList", "meta.k8s.io", "v1") => Some(Form::PartialList),
            _ => None,
        }
    }
}

/// What is to be answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Object,
    Watch,
    /// Lists and documents.
    Other,
}

/// Chooses the first offered member; an absent header takes JSON. Protobuf is given for single objects, and only to
/// clients that take nothing else.
pub fn answer(accept: Option<&str>, content: Content) -> Result<Accepted, Status> {
    let accept = accept.filter(|text| !text.trim().is_empty()).unwrap_or("application/json");
    let asked: Vec<Media<'_>> = accept.split(',').map(|text| Media::parse(text.trim())).collect();
    let mut unknown_form = false;
    for media in &asked {
        let encoding = match media.type_ {
            "application/json" | "*/*" => Encoding::Json,
            "application/yaml" if content != Content::Watch => Encoding::Yaml,
            _ => continue,
        };
        match media.form() {
            Some(form) => return Ok(Accepted { form, encoding }),
            None => unknown_form = true,
        }
    }
    let protobuf =
        |media: &Media<'_>| media.type_ == Encoding::Protobuf.content_type() && media.form() == Some(Form::Plain);
    if content == Content::Object && asked.iter().any(protobuf) {
        return Ok(Accepted { form: Form::Plain, encoding: Encoding::Protobuf });
    }
    if unknown_form {
        return Err(Status::not_acceptable(&OFFERED));
    }
    let mut offered = OFFERED.to_vec();
    if content == Content::Watch {
        offered.extend(OFFERED_STREAMS);
    }
    Err(Status::none_acceptable(&offered))
}

/// The encoding of a refusal.
pub fn of_refusal(accept: Option<&str>) -> Encoding {
    let types = accept.unwrap_or_default().split(',').map(|text| Media::parse(text.trim()).type_);
    let mut encodings = types.filter_map(|type_| match type_ {
        "application/json" | "application/*" | "*/*" => Some(Encoding::Json),
        "application/yaml" => Some(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Some(Encoding::Protobuf),
        _ => None,
    });
    let first = encodings.next();
    if encodings.any(|other| other == Encoding::Json) { Encoding::Json } else { first.unwrap_or(Encoding::Json) }
}

/// The aggregated form of discovery that a client asks for first, if any.
pub fn aggregated(accept: Option<&str>) -> Option<Aggregated> {
    let media = accept?.split(',').map(|text| Media::parse(text.trim()));
    let mut forms =
        media.map(|media| match (media.type_, media.parameter("g"), media.parameter("v"), media.parameter("as")) {
            ("application/json", "apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => Some(Some(Aggregated::V2)),
            ("application/json", "apidiscovery.k8s.io", "v2beta1", "APIGroupDiscoveryList") => {
                Some(Some(Aggregated::V2Beta1))
            }
            ("application/json" | "*/*" | "application/*", "", ..) => Some(None),
            _ => None,
        });
    forms.find_map(|form| form).flatten()
}

/// The form of `/openapi/v2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenApi {
    Json,
    Protobuf,
}

impl OpenApi {
    /// The first form offered among those asked for; an absent header, or none that is offered, takes JSON.
    pub fn wanted(accept: Option<&str>) -> Self {
        let media = accept.unwrap_or_default().split(',').map(|text| Media::parse(text.trim()));
        let mut forms = media.filter_map(|media| match media.type_ {
            "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
            | "application/com.github.proto-openapi.spec.v2.v1.0+protobuf" => Some(Self::Protobuf),
            "application/json" | "application/*" | "*/*" => Some(Self::Json),
            _ => None,
        });
        forms.next().unwrap_or(Self::Json)
    }

    /// Asked for with an `@`, which no media type may contain; answered, as upstream does, without.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        }
    }
}

/// The media type of an object body; an absent header means JSON.
pub fn body(content_type: Option<&str>) -> Result<MediaType, Status> {
    match media_of(content_type) {
        "" | "application/json" => Ok(MediaType::Json),
        "application/yaml" => Ok(MediaType::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(MediaType::Protobuf),
        _ => Err(Status::unsupported_media_type(&OFFERED)),
    }
}

/// A header's media type without its parameters.
pub fn media_of(content_type: Option<&str>) -> &str {
    content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectls_headers_get_what_they_ask_for() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(answer(Some(table), Content::Other).unwrap().form, Form::Table);
        assert_eq!(answer(None, Content::Other).unwrap(), Accepted { form: Form::Plain, encoding: Encoding::Json });
        assert_eq!(
            answer(Some("application/vnd.kubernetes.protobuf, */*"), Content::Object).unwrap().encoding,
            Encoding::Json
        );
        assert_eq!(answer(Some("text/plain"), Content::Watch).unwrap_err().code, 406);
    }

    #[test]
    fn client_go_gets_openapi_in_protobuf() {
        let client_go = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        assert_eq!(OpenApi::wanted(Some(client_go)), OpenApi::Protobuf);
        assert_eq!(OpenApi::wanted(Some("application/json")), OpenApi::Json);
        assert_eq!(OpenApi::wanted(None), OpenApi::Json);
        assert!(!OpenApi::Protobuf.content_type().contains('@'));
    }

    #[test]
    fn discovery_forms_are_taken_in_order() {
        let both = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(aggregated(Some(both)), Some(Aggregated::V2));
        assert_eq!(aggregated(Some("application/json, */*")), None);
        assert_eq!(aggregated(None), None);
    }
}
