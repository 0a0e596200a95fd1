//! When a Job fails or succeeds before its pods do: the rules of its two policies.

use std::collections::HashSet;

use crate::names;
use crate::validate::{At, Errors};
use crate::value::{items, text};

const RULES: usize = 20;
const EXIT_CODES: usize = 255;
const PATTERNS: usize = 20;
const SUCCESS_RULES: usize = 20;
const INDEXES_BYTES: usize = 64 * 1024;

/// A value that has to be there and be one of these.
fn needs_one_of(at: &At<'_>, options: &[&str], errors: &mut Errors) {
    match at.text() {
        "" => {
            let list: Vec<String> = options.iter().map(|option| format!("{option:?}")).collect();
            at.required(&format!("valid values: [{}]", list.join(" ")), errors);
        }
        _ => at.one_of(options, errors),
    }
}

pub fn policy(spec: &At<'_>, errors: &mut Errors) {
    let rules = spec.at("podFailurePolicy").at("rules");
    if items(rules.value).len() > RULES {
        rules.too_many(RULES, errors);
    }
    let pod = spec.at("template").at("spec").value;
    let containers: HashSet<&str> =
        ["containers", "initContainers"].iter().flat_map(|list| items(&pod[*list])).map(|c| text(&c["name"])).collect();
    for rule in rules.items() {
        let action = rule.at("action");
        match action.text() {
            "FailIndex" if !spec.at("backoffLimitPerIndex").is_given() => {
                action.invalid("requires the backoffLimitPerIndex to be set", errors);
            }
            "FailIndex" => {}
            _ => needs_one_of(&action, &["Count", "FailIndex", "FailJob", "Ignore"], errors),
        }
        let (codes, conditions) = (rule.at("onExitCodes"), rule.at("onPodConditions"));
        if codes.is_given() {
            exit_codes(&codes, &containers, errors);
        }
        patterns(&conditions, errors);
        match (codes.is_given(), conditions.is_empty()) {
            (true, false) => rule.wrong("specifying both OnExitCodes and OnPodConditions is not supported", errors),
            (false, true) => rule.wrong("specifying one of OnExitCodes and OnPodConditions is required", errors),
            _ => {}
        }
    }
}

fn patterns(conditions: &At<'_>, errors: &mut Errors) {
    if items(conditions.value).len() > PATTERNS {
        conditions.too_many(PATTERNS, errors);
    }
    for pattern in conditions.items() {
        pattern.at("type").named(names::qualified_name, errors);
        needs_one_of(&pattern.at("status"), &["False", "True", "Unknown"], errors);
    }
}

fn exit_codes(codes: &At<'_>, containers: &HashSet<&str>, errors: &mut Errors) {
    let operator = codes.at("operator");
    needs_one_of(&operator, &["In", "NotIn"], errors);
    let container = codes.at("containerName");
    if container.is_given() && !containers.contains(container.text()) {
        container.invalid("must be one of the container or initContainer names in the pod template", errors);
    }
    let values = codes.at("values");
    match items(values.value).len() {
        0 => values.invalid_as(values.value.clone(), "at least one value is required", errors),
        n if n > EXIT_CODES => values.too_many(EXIT_CODES, errors),
        _ => {}
    }
    let (mut seen, mut ordered, mut before) = (HashSet::new(), true, None);
    for value in values.items() {
        let code = value.number().unwrap_or(0);
        if operator.text() == "In" && code == 0 {
            value.invalid("must not be 0 for the In operator", errors);
        }
        if !seen.insert(code) {
            value.duplicate(errors);
        }
        ordered &= before.is_none_or(|before| before <= code);
        before = Some(code);
    }
    if !ordered {
        values.invalid("must be ordered", errors);
    }
}

pub fn success(spec: &At<'_>, errors: &mut Errors) {
    let rules = spec.at("successPolicy").at("rules");
    if rules.is_empty() {
        rules.required("at least one rules must be specified when the successPolicy is specified", errors);
    }
    if items(rules.value).len() > SUCCESS_RULES {
        rules.too_many(SUCCESS_RULES, errors);
    }
    // Without completions the spec is refused for that.
    let completions = spec.at("completions").number().unwrap_or(0);
    for rule in rules.items() {
        success_rule(&rule, completions, errors);
    }
}

fn success_rule(rule: &At<'_>, completions: i64, errors: &mut Errors) {
    let (count, indexes) = (rule.at("succeededCount"), rule.at("succeededIndexes"));
    if !count.is_given() && !indexes.is_given() {
        rule.required("at least one of succeededCount or succeededIndexes must be specified", errors);
    }
    let mut total = 0;
    if indexes.is_given() {
        if indexes.text().len() > INDEXES_BYTES {
            indexes.too_long(INDEXES_BYTES, errors);
        }
        match count_indexes(indexes.text(), completions) {
            Ok(found) => total = found,
            Err(why) => indexes.invalid(format!("error parsing succeededIndexes: {why}"), errors),
        }
    }
    let Some(n) = count.number() else { return };
    count.not_negative(errors);
    if n > completions {
        let why = format!("must be less than or equal to {completions} (the number of specified completions)");
        count.invalid(why, errors);
    }
    if indexes.is_given() && n > total {
        let why = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        count.invalid(why, errors);
    }
}

/// The first and the last of `3` or `3-5`.
pub fn interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let parts: Vec<&str> = text.split('-').collect();
    if parts.len() > 2 {
        return Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        ));
    }
    let index = |part: &str| match part.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {part:?}")),
        Ok(n) if n >= completions => Err(format!("too large index: {part:?}")),
        Ok(n) => Ok(n),
    };
    let first = index(parts[0])?;
    match parts.get(1) {
        None => Ok((first, first)),
        Some(part) => match index(part)? {
            last if first >= last => Err(format!("non-increasing order, previous: {first}, current: {last}")),
            last => Ok((first, last)),
        },
    }
}

/// How many indexes a list of intervals holds.
pub fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut before) = (0, None);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = interval(part, completions)?;
        if let Some(before) = before.filter(|before| *before >= first) {
            return Err(format!("non-increasing order, previous: {before}, current: {first}"));
        }
        total += last - first + 1;
        before = Some(last);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted() {
        assert_eq!(count_indexes("", 9), Ok(0));
        assert_eq!(count_indexes("0,2-4,7", 9), Ok(5));
        assert_eq!(count_indexes("2,1", 9).unwrap_err(), "non-increasing order, previous: 2, current: 1");
        assert_eq!(count_indexes("9", 9).unwrap_err(), "too large index: \"9\"");
        assert_eq!(count_indexes("a", 9).unwrap_err(), "cannot convert string to integer for index: \"a\"");
        assert!(count_indexes("1-2-3", 9).unwrap_err().contains("at most two parts"));
    }
}
