//! The virtual kinds: reviews of identities and permissions, token requests. Answered, never stored.

use api::kind::{Kind, Part};
use api::status::{FieldError, Status};
use api::uid::Uid;
use serde_json::{Value, json};

use crate::authn::{self, Bound, Claims, Reference, Tokens, user_info};
use crate::authz::Attributes;
use crate::engine::Engine;
use crate::identity::User;
use crate::object::new_uid;
use crate::request::{Context, Target, WriteOptions};

/// What is answered, and texts for `Warning: 299` headers.
pub type Answer = (Value, Vec<String>);

/// Answers a POST of a kind that is not stored.
pub async fn answer(
    engine: &Engine,
    tokens: &Tokens,
    context: &Context,
    target: &Target,
    options: &WriteOptions,
    object: Value,
) -> Result<Answer, Status> {
    let (object, warnings) = engine.admit(context, target, options, object).await?;
    Ok((answered(engine, tokens, context, target, object)?, warnings))
}

fn answered(
    engine: &Engine,
    tokens: &Tokens,
    context: &Context,
    target: &Target,
    mut object: Value,
) -> Result<Value, Status> {
    object["metadata"].as_object_mut().map(|metadata| metadata.remove("name"));
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let status = match &*target.kind.kind {
        "TokenReview" => token_review(engine, tokens, &object)?,
        "SelfSubjectReview" => {
            object["metadata"] = json!({"creationTimestamp": api::time::rfc3339(context.now)});
            json!({"userInfo": user_info(&context.user)})
        }
        "SelfSubjectAccessReview" => access(engine, &context.user, &target.kind.kind, &object)?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let spec = &object["spec"];
            if target.kind.kind == "LocalSubjectAccessReview" {
                check_local(target, spec)?;
            }
            access(engine, &subject(spec), &target.kind.kind, &object)?
        }
        "SelfSubjectRulesReview" => {
            let rules = rules(engine, &context.user, &object)?;
            // Upstream answers with a fresh object.
            (object["metadata"], object["spec"]) = (json!({}), json!({}));
            rules
        }
        _ => return Err(Status::method_not_allowed()),
    };
    object["status"] = status;
    if target.kind.namespaced() {
        object["metadata"]["namespace"] = json!(target.namespace);
    }
    Ok(object)
}

fn subject(spec: &Value) -> User {
    let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let name = spec["user"].as_str().unwrap_or_default().to_owned();
    User { name, groups, ..User::default() }
}

fn check_local(target: &Target, spec: &Value) -> Result<(), Status> {
    let asked = spec["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
    if asked == target.namespace {
        return Ok(());
    }
    let error = FieldError::invalid("spec.resourceAttributes.namespace", asked, "must match metadata.namespace");
    Err(Status::invalid("authorization.k8s.io", "", "", vec![error]))
}

fn access(engine: &Engine, user: &User, kind: &str, object: &Value) -> Result<Value, Status> {
    let spec = &object["spec"];
    let (resource, path) = (spec.get("resourceAttributes"), spec.get("nonResourceAttributes"));
    let mut errors = Vec::new();
    match (resource, path) {
        (Some(_), Some(path)) => {
            let met = json!({"Path": path["path"].as_str().unwrap_or_default(), "Verb": path["verb"].as_str().unwrap_or_default()});
            errors.push(FieldError::invalid(
                "spec.nonResourceAttributes",
                met,
                "cannot be specified in combination with resourceAttributes",
            ));
        }
        (None, None) => {
            errors.push(FieldError::invalid(
                "spec.resourceAttributes",
                Value::Null,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
        _ => {}
    }
    if kind != "SelfSubjectAccessReview" && user.name.is_empty() && user.groups.is_empty() {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    if !errors.is_empty() {
        // Upstream leaves the kind out.
        return Err(Status::invalid("authorization.k8s.io", "", "", errors));
    }
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let asked = match (resource, path) {
        (Some(of), _) => Attributes {
            verb: text(of, "verb"),
            group: text(of, "group"),
            resource: text(of, "resource"),
            subresource: text(of, "subresource"),
            namespace: text(of, "namespace"),
            name: text(of, "name"),
            ..Attributes::default()
        },
        (None, of) => {
            let of = of.cloned().unwrap_or_default();
            Attributes { verb: text(&of, "verb"), path: Some(text(&of, "path")), ..Attributes::default() }
        }
    };
    Ok(match engine.authorizer.decide(engine, user, &asked) {
        Some(reason) if reason.is_empty() => json!({"allowed": true}),
        Some(reason) => json!({"allowed": true, "reason": reason}),
        None => json!({"allowed": false}),
    })
}

fn rules(engine: &Engine, user: &User, object: &Value) -> Result<Value, Status> {
    let namespace = object["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let all = engine.authorizer.rules(engine, user, namespace);
    let (paths, resources): (Vec<_>, Vec<_>) = all.iter().partition(|rule| !rule.non_resource_urls.is_empty());
    let mut paths: Vec<Value> = paths.iter().map(|rule| json!(rule)).collect();
    let mut resources: Vec<Value> = resources.iter().map(|rule| json!(rule)).collect();
    if user.is_master() {
        resources.insert(0, json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        paths.insert(0, json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}

fn token_review(engine: &Engine, tokens: &Tokens, object: &Value) -> Result<Value, Status> {
    let spec = &object["spec"];
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let asked: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let audiences = if asked.is_empty() { vec![tokens.issuer.clone()] } else { asked };
    Ok(match tokens.check(engine, token, &audiences) {
        Some((user, shared)) => json!({"authenticated": true, "user": user_info(&user), "audiences": shared}),
        None => json!({"user": {}, "error": refusal(engine, tokens, token, &audiences)}),
    })
}

/// Why a token proves nothing: a good one for somebody else is told apart, as upstream does.
fn refusal(engine: &Engine, tokens: &Tokens, token: &str, audiences: &[String]) -> String {
    match tokens.audiences(engine, token) {
        Some(own) => {
            format!("[invalid bearer token, token audiences {own:?} is invalid for the target audiences {audiences:?}]")
        }
        None => "invalid bearer token".into(),
    }
}

/// What a token request that does not say gets.
pub fn default_token(request: &mut Value) {
    if request["spec"]["expirationSeconds"].is_null() {
        request["spec"]["expirationSeconds"] = json!(authn::DEFAULT_SECONDS);
    }
}

/// TokenRequest as a kind of its own, for its field managers.
pub fn token_kind(target: &Target) -> Option<Kind> {
    let sub = target.kind.subresource(Part::Token)?;
    let gvk = sub.gvk.clone();
    Some(Kind {
        group: gvk.group,
        version: gvk.version,
        kind: gvk.kind,
        schema: sub.schema.clone(),
        ..Kind::clone(&target.kind)
    })
}

/// `serviceaccounts/NAME/token`.
pub async fn token_request(
    engine: &Engine,
    tokens: &Tokens,
    context: &Context,
    target: &Target,
    options: &WriteOptions,
    request: Value,
) -> Result<Answer, Status> {
    let (request, warnings) = engine.admit(context, target, options, request).await?;
    Ok((signed(engine, tokens, context, target, request)?, warnings))
}

fn signed(
    engine: &Engine,
    tokens: &Tokens,
    context: &Context,
    target: &Target,
    mut request: Value,
) -> Result<Value, Status> {
    let (namespace, name) = (&target.namespace, &target.name);
    let account = engine
        .lookup("", "serviceaccounts", namespace, name)
        .ok_or_else(|| Status::not_found("", "serviceaccounts", name))?;
    let spec = &request["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(authn::DEFAULT_SECONDS);
    check_seconds(seconds)?;
    let seconds = seconds.min(authn::LONGEST_SECONDS);
    let asked: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let audiences = if asked.is_empty() { vec![tokens.issuer.clone()] } else { asked };
    let bound = bind(engine, target, &spec["boundObjectRef"], &account.header.uid)?;
    let now = context.now.as_second();
    let claims = Claims {
        iss: tokens.issuer.clone(),
        sub: format!("system:serviceaccount:{namespace}:{name}"),
        aud: audiences.clone(),
        exp: now + seconds,
        iat: now,
        nbf: now,
        jti: uuid::Uuid::new_v4().to_string(),
        bound,
    };
    let until = jiff::Timestamp::from_second(now + seconds).map_err(Status::internal)?;
    let managed = request["metadata"].get("managedFields").cloned();
    let uid = new_uid();
    request["metadata"] =
        json!({"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": api::time::rfc3339(context.now)});
    if let Some(managed) = managed {
        request["metadata"]["managedFields"] = managed;
    }
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = json!(seconds);
    if request["spec"].get("boundObjectRef").is_none() {
        request["spec"]["boundObjectRef"] = Value::Null;
    }
    request["status"] = json!({"token": tokens.sign(&claims)?, "expirationTimestamp": api::time::rfc3339(until)});
    Ok(request)
}

fn check_seconds(seconds: i64) -> Result<(), Status> {
    let why = match seconds {
        few if few < authn::SHORTEST_SECONDS => "may not specify a duration less than 10 minutes",
        many if many > 1 << 32 => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(()),
    };
    let error = FieldError::invalid("spec.expirationSeconds", seconds, why);
    Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", vec![error]))
}

/// What the token is bound to: the account, and a pod or secret that must be there.
fn bind(engine: &Engine, target: &Target, reference: &Value, account_uid: &Uid) -> Result<Bound, Status> {
    let serviceaccount = Reference { name: target.name.clone(), uid: account_uid.clone() };
    let mut bound = Bound { namespace: target.namespace.clone(), serviceaccount, ..Bound::default() };
    if !reference.is_object() {
        return Ok(bound);
    }
    let (kind, name) = (reference["kind"].as_str().unwrap_or_default(), reference["name"].as_str().unwrap_or_default());
    let plural = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        _ => {
            let gvk = format!("cannot bind token for serviceaccount {:?} to object type {kind:?}", target.name);
            return Err(Status::bad_request(gvk));
        }
    };
    let found =
        engine.lookup("", plural, &target.namespace, name).ok_or_else(|| Status::not_found("", plural, name))?;
    let uid = found.header.uid.clone();
    if let Some(asked) = reference["uid"].as_str().filter(|asked| !asked.is_empty() && *asked != uid.as_str()) {
        let why = format!(
            "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", plural, name, &why));
    }
    let own = Some(Reference { name: name.to_owned(), uid });
    if kind == "Secret" {
        bound.secret = own;
        return Ok(bound);
    }
    let pod = found.value();
    if pod["spec"]["serviceAccountName"] != *target.name {
        let why = "to pod running with different serviceaccount name.";
        return Err(Status::bad_request(format!("cannot bind token for serviceaccount {:?} {why}", target.name)));
    }
    bound.pod = own;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    if let Some(object) = engine.lookup("", "nodes", "", &node) {
        bound.node = Some(Reference { name: node, uid: object.header.uid.clone() });
    }
    Ok(bound)
}
