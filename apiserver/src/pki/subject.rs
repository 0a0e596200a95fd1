//! Whom a certificate names, or a request for one: read in one way by who checks a request, who signs it, and who is shown the
//! certificate, so that none of them sees somebody else.

use thiserror::Error;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::db::rfc4519;
use x509_cert::name::Name;

/// A user and its groups, as Kubernetes reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Empty where none is named.
    pub common_name: String,
    pub organizations: Vec<String>,
}

#[derive(Debug, Error)]
pub enum SubjectError {
    #[error("the subject cannot be read: {0}")]
    Unreadable(#[from] x509_cert::der::Error),
    #[error("the subject has more than one common name")]
    TwoNames,
    #[error("the subject has a name or organization that is neither a UTF8String nor a PrintableString")]
    Text,
}

impl Subject {
    /// From the DER form of a name.
    ///
    /// # Errors
    /// When somebody else might read another name there: of several, or in another alphabet.
    pub fn read(der: &[u8]) -> Result<Self, SubjectError> {
        Self::of(&Name::from_der(der)?)
    }

    /// # Errors
    /// As for `read`.
    pub fn of(name: &Name) -> Result<Self, SubjectError> {
        let mut subject = Self::default();
        let mut named = false;
        for attribute in name.0.iter().flat_map(|part| part.0.iter()) {
            match attribute.oid {
                rfc4519::CN if std::mem::replace(&mut named, true) => return Err(SubjectError::TwoNames),
                rfc4519::CN => subject.common_name = text(attribute)?,
                rfc4519::O => subject.organizations.push(text(attribute)?),
                _ => {}
            }
        }
        Ok(subject)
    }
}

fn text(attribute: &AttributeTypeAndValue) -> Result<String, SubjectError> {
    let value = &attribute.value;
    let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.to_string());
    let printable = || value.decode_as::<PrintableStringRef<'_>>().map(|text| text.to_string());
    utf8.or_else(|_| printable()).map_err(|_| SubjectError::Text)
}

#[cfg(test)]
mod tests {
    use x509_cert::attr::AttributeTypeAndValue;
    use x509_cert::der::Encode as _;
    use x509_cert::der::asn1::{Any, Ia5String, ObjectIdentifier, SetOfVec};
    use x509_cert::der::{Tag, asn1::PrintableString};
    use x509_cert::name::{RdnSequence, RelativeDistinguishedName};

    use super::*;

    fn name(parts: Vec<(ObjectIdentifier, Any)>) -> Vec<u8> {
        let part = |(oid, value)| {
            RelativeDistinguishedName(SetOfVec::try_from(vec![AttributeTypeAndValue { oid, value }]).unwrap())
        };
        RdnSequence(parts.into_iter().map(part).collect()).to_der().unwrap()
    }

    fn utf8(text: &str) -> Any {
        Any::encode_from(&Utf8StringRef::new(text).unwrap()).unwrap()
    }

    #[test]
    fn a_user_and_its_groups_are_read() {
        let printable = Any::encode_from(&PrintableString::new("ops").unwrap()).unwrap();
        let der = name(vec![(rfc4519::O, utf8("dev")), (rfc4519::O, printable), (rfc4519::CN, utf8("jane"))]);
        let groups = vec!["dev".to_owned(), "ops".to_owned()];
        assert_eq!(Subject::read(&der).unwrap(), Subject { common_name: "jane".into(), organizations: groups });
        assert_eq!(Subject::read(&name(Vec::new())).unwrap(), Subject::default());
    }

    #[test]
    fn what_others_may_read_otherwise_names_nobody() {
        let two = name(vec![(rfc4519::CN, utf8("a")), (rfc4519::CN, utf8("b"))]);
        assert!(matches!(Subject::read(&two), Err(SubjectError::TwoNames)));
        let ia5 = Any::encode_from(&Ia5String::new("system:masters").unwrap()).unwrap();
        let alphabets = [Tag::TeletexString, Tag::BmpString, Tag::NumericString];
        let odd = alphabets.map(|tag| Any::new(tag, b"system:masters".to_vec()).unwrap());
        for value in odd.into_iter().chain([ia5]) {
            for kind in [rfc4519::O, rfc4519::CN] {
                assert!(matches!(Subject::read(&name(vec![(kind, value.clone())])), Err(SubjectError::Text)));
            }
        }
        assert!(matches!(Subject::read(b"\x30\x03abc"), Err(SubjectError::Unreadable(_))));
    }
}
