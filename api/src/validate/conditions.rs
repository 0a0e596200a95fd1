//! Conditions of the common form (`metav1.Condition`).

use std::collections::HashSet;

use super::{At, Errors};
use crate::names;

pub fn conditions(list: &At<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for condition in list.items() {
        let kind = condition.at("type");
        if !seen.insert(kind.text()) {
            kind.duplicate(errors);
        }
        self::condition(&condition, errors);
    }
}

const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";
const REASON_BYTES: usize = 1024;
const MESSAGE_BYTES: usize = 32 * 1024;

fn condition(condition: &At<'_>, errors: &mut Errors) {
    condition.at("type").named(names::qualified_name, errors);
    condition.at("status").one_of(&["False", "True", "Unknown"], errors);
    let observed = condition.at("observedGeneration");
    if observed.number().is_some_and(|n| n < 0) {
        observed.invalid("must be greater than or equal to zero", errors);
    }
    if !condition.at("lastTransitionTime").is_given() {
        condition.at("lastTransitionTime").required("", errors);
    }
    let reason = condition.at("reason");
    match reason.text() {
        "" => reason.required("", errors),
        text => {
            let bytes = text.as_bytes();
            let inner = |b: &u8| b.is_ascii_alphanumeric() || b"_,:".contains(b);
            let fine = bytes[0].is_ascii_alphabetic()
                && bytes.iter().all(inner)
                && bytes.last().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
            if !fine {
                reason.invalid(REASON, errors);
            }
            if text.len() > REASON_BYTES {
                reason.too_long(REASON_BYTES, errors);
            }
        }
    }
    if condition.at("message").text().len() > MESSAGE_BYTES {
        condition.at("message").too_long(MESSAGE_BYTES, errors);
    }
}
