//! Who is asking: client certificates, service account tokens, bootstrap tokens, or nobody.

use std::collections::BTreeMap;

use api::status::Status;
use api::uid::Uid;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

mod bootstrap;

use crate::identity::{AUTHENTICATED, User};
use crate::pki::Authority;
use crate::pki::subject::Subject;
use crate::reader::Reader;

/// The lifetime of a token nobody gave one, and the shortest that may be asked for, seconds.
pub const DEFAULT_SECONDS: i64 = 3600;
pub const SHORTEST_SECONDS: i64 = 600;
/// No token lives longer, whatever is asked for: nobody takes one back that was lost.
pub const LONGEST_SECONDS: i64 = 365 * 86_400;

/// An uncompressed P-256 point: a mark, then both coordinates.
const POINT: usize = 65;

/// A P-256 public key as a JSON Web Key; `Null` for anything else.
fn jwk(pem: &str) -> Value {
    let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = BASE64_STANDARD.decode(text).unwrap_or_default();
    // The key is the last member of its SubjectPublicKeyInfo.
    let Some((4, point)) = der.len().checked_sub(POINT).and_then(|at| der[at..].split_first()) else {
        return Value::Null;
    };
    let (x, y) = point.split_at(POINT / 2);
    let encode = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
    json!({"kty": "EC", "use": "sig", "alg": "ES256", "crv": "P-256", "x": encode(x), "y": encode(y)})
}

/// What a service account token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub nbf: i64,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Bound {
    pub namespace: String,
    pub serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub uid: Uid,
}

/// Signs and checks tokens of one cluster.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    /// Issuer and default audience.
    pub issuer: String,
    /// The public key as others check tokens with it.
    pub keys: Value,
}

impl Tokens {
    /// With the cluster's key; `domain` is part of the issuer's name.
    ///
    /// # Errors
    /// When the authority's token key is no PEM of an ES256 key.
    pub fn new(authority: &Authority, domain: &str) -> Result<Self, jsonwebtoken::errors::Error> {
        Ok(Self {
            encoding: EncodingKey::from_ec_pem(authority.token_key.as_bytes())?,
            decoding: DecodingKey::from_ec_pem(authority.token_public_key.as_bytes())?,
            issuer: format!("https://kubernetes.default.svc.{domain}"),
            keys: json!({"keys": [jwk(&authority.token_public_key)]}),
        })
    }

    /// # Errors
    /// 500 when the key does not sign.
    pub fn sign(&self, claims: &Claims) -> Result<String, Status> {
        let header = jsonwebtoken::Header::new(Algorithm::ES256);
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(Status::internal)
    }

    /// The audiences of a token that is good in itself.
    pub fn audiences(&self, reader: &Reader, token: &str) -> Option<Vec<String>> {
        self.claims(reader, token).map(|claims| claims.aud)
    }

    /// The user a token stands for and the audiences it shares with `audiences`; `None` when it proves nothing.
    pub fn check(&self, reader: &Reader, token: &str, audiences: &[String]) -> Option<(User, Vec<String>)> {
        let Some(claims) = self.claims(reader, token) else {
            // A bootstrap token is for this server, and says so to nobody.
            let own = vec![self.issuer.clone()];
            return bootstrap::check(reader, token, Timestamp::now())
                .filter(|_| audiences.contains(&self.issuer))
                .map(|user| (user, own));
        };
        let shared: Vec<String> = claims.aud.iter().filter(|aud| audiences.contains(aud)).cloned().collect();
        (!shared.is_empty()).then(|| (user_of(&claims), shared))
    }

    /// What a token says, when we signed it, its time is now, and what it is bound to is still there.
    fn claims(&self, reader: &Reader, token: &str) -> Option<Claims> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.issuer]);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.leeway = 10;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation).ok()?.claims;
        still_there(reader, &claims.bound, Timestamp::now()).then_some(claims)
    }
}

/// What is being deleted vouches for a token for so long, as upstream has it: for its last words, and not for as long as
/// a finalizer holds it.
const LAST_WORDS: SignedDuration = SignedDuration::from_secs(60);

fn is_over(object: &Value, now: Timestamp) -> bool {
    let deleted = object["metadata"]["deletionTimestamp"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    deleted.is_some_and(|deleted| now.duration_since(deleted) > LAST_WORDS)
}

/// The account, and the pod a token is bound to, exist with the uids the token was made for.
fn still_there(reader: &Reader, bound: &Bound, now: Timestamp) -> bool {
    let uid = |plural: &str, namespace: &str, name: &str| {
        let found = reader.lookup("", plural, namespace, name)?;
        (!is_over(&found.value(), now)).then(|| found.header.uid.clone())
    };
    let account = &bound.serviceaccount;
    uid("serviceaccounts", &bound.namespace, &account.name).as_ref() == Some(&account.uid)
        && bound.pod.as_ref().is_none_or(|pod| uid("pods", &bound.namespace, &pod.name).as_ref() == Some(&pod.uid))
        && bound
            .secret
            .as_ref()
            .is_none_or(|secret| uid("secrets", &bound.namespace, &secret.name).as_ref() == Some(&secret.uid))
}

fn user_of(claims: &Claims) -> User {
    let bound = &claims.bound;
    let mut user = User::service_account(&bound.namespace, &bound.serviceaccount.name);
    user.uid = bound.serviceaccount.uid.to_string();
    let mut extra = BTreeMap::new();
    extra.insert(CREDENTIAL.to_owned(), vec![format!("JTI={}", claims.jti)]);
    for (prefix, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
        if let Some(reference) = reference {
            extra.insert(format!("authentication.kubernetes.io/{prefix}-name"), vec![reference.name.clone()]);
            extra.insert(format!("authentication.kubernetes.io/{prefix}-uid"), vec![reference.uid.to_string()]);
        }
    }
    user.extra = extra;
    user
}

/// Which token or certificate proved who asks, among the extras of a user.
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// A client certificate that was verified at the handshake.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// CN and every O.
    pub user: User,
    /// Unix seconds after which it proves nothing.
    pub expires: i64,
}

impl Certificate {
    /// `None` when it names nobody.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let Subject { common_name: name, organizations: mut groups } =
            Subject::read(certificate.subject().as_raw()).ok().filter(|subject| !subject.common_name.is_empty())?;
        groups.push(AUTHENTICATED.into());
        let expires = certificate.validity().not_after.timestamp();
        let print: String = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect();
        let extra = BTreeMap::from([(CREDENTIAL.to_owned(), vec![format!("X509SHA256={print}")])]);
        Some(Self { user: User { name, groups, extra, ..User::default() }, expires })
    }
}

/// A user as reviews show it.
pub fn user_info(user: &User) -> Value {
    let mut info = serde_json::Map::new();
    info.insert("username".into(), user.name.clone().into());
    if !user.uid.is_empty() {
        info.insert("uid".into(), user.uid.clone().into());
    }
    if !user.groups.is_empty() {
        info.insert("groups".into(), user.groups.clone().into());
    }
    if !user.extra.is_empty() {
        info.insert("extra".into(), serde_json::to_value(&user.extra).unwrap_or_default());
    }
    info.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_deleted_vouches_for_nothing() {
        let object = json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"}});
        let at = |text: &str| text.parse().unwrap();
        assert!(!is_over(&object, at("2024-01-01T00:00:59Z")) && is_over(&object, at("2024-01-01T00:01:01Z")));
        assert!(!is_over(&json!({"metadata": {}}), at("2024-01-01T00:01:01Z")));
    }

    #[test]
    fn a_public_key_becomes_its_coordinates() {
        let der = [vec![0x30, 0x59], vec![4], vec![1; 32], vec![2; 32]].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64_STANDARD.encode(der));
        let key = jwk(&pem);
        assert_eq!(
            (&key["x"], &key["y"]),
            (&json!(BASE64_URL_SAFE_NO_PAD.encode([1; 32])), &json!(BASE64_URL_SAFE_NO_PAD.encode([2; 32])))
        );
        assert_eq!(jwk("no key"), Value::Null);
    }
}
