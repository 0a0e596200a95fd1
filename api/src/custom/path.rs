//! JSONPath as Kubernetes has it: how the columns of custom resources say where their cells are.

use std::cmp::Ordering;

use serde_json::Value;
use thiserror::Error;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Member(String),
    Every,
    /// Every member and item, however deep.
    Deep,
    Item(i64),
    Range(i64, Option<i64>, usize),
    /// The items of which this holds.
    Where(Filter),
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    path: Path,
    /// Without one, what is there holds.
    test: Option<(Operator, Operand)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Value(Value),
    Path(Path),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

const OPERATORS: [(&str, Operator); 6] = [
    ("==", Operator::Equal),
    ("!=", Operator::Unequal),
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("<", Operator::Less),
    (">", Operator::More),
];

/// Filters inside each other, and steps of a path with those of its filters: far beyond what columns need. Reading and
/// searching take stack for both.
const DEPTH: usize = 8;
const STEPS: usize = 100;
/// Values looked at for the columns of one object: steps that go through everything multiply.
const LOOKS: usize = 20_000;
/// Bytes of compared text that count as one look.
const LOOK: usize = 256;

/// Why a text is no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoPath {
    #[error("is not a JSONPath")]
    Malformed,
    #[error("must not nest filters more than {DEPTH} deep")]
    TooDeep,
    #[error("must not have more than {STEPS} steps, those of its filters included")]
    TooLong,
}

/// More was looked at than one object is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted;

/// What may still be looked at in one object.
#[derive(Debug)]
pub struct Search {
    left: usize,
}

impl Default for Search {
    fn default() -> Self {
        Self { left: LOOKS }
    }
}

impl Search {
    fn spend(&mut self, looks: usize) -> Result<(), Exhausted> {
        self.left = self.left.checked_sub(looks).ok_or(Exhausted)?;
        Ok(())
    }
}

type Found<'v> = Result<Option<&'v Value>, Exhausted>;

/// Where something is in an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Path {
    steps: Vec<Step>,
}

impl Path {
    /// A path as columns of defined kinds have it, such as `.spec.replicas`.
    ///
    /// # Errors
    /// [`NoPath`]: no JSONPath, or one that costs more than a column may.
    pub fn parse(text: &str) -> Result<Path, NoPath> {
        let mut reader = Reader { rest: text, depth: 0, steps: 0 };
        let path = reader.path()?;
        if reader.rest.is_empty() { Ok(path) } else { Err(NoPath::Malformed) }
    }

    /// The first value that is there.
    ///
    /// # Errors
    /// [`Exhausted`] when more would be looked at than `search` has left; the object gets no value then.
    pub fn first<'v>(&self, value: &'v Value, search: &mut Search) -> Found<'v> {
        walk(&self.steps, value, search)
    }
}

/// The first value to which these steps lead. Each call is a step or a level of the object further.
fn walk<'v>(steps: &[Step], value: &'v Value, search: &mut Search) -> Found<'v> {
    search.spend(1)?;
    let Some((step, rest)) = steps.split_first() else { return Ok(Some(value)) };
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
    let from_end = |at: i64| usize::try_from(if at < 0 { at.saturating_add(length) } else { at }).ok();
    match step {
        Step::Member(name) => first(value.get(name), rest, search),
        Step::Every => first(below(value), rest, search),
        Step::Deep => match walk(rest, value, search)? {
            None => first(below(value), steps, search),
            found => Ok(found),
        },
        Step::Item(at) => first(from_end(*at).and_then(|at| list.get(at)), rest, search),
        Step::Range(from, to, step) => {
            let from = from_end(*from).unwrap_or(0);
            let to = to.map_or(Some(list.len()), from_end).unwrap_or(0).min(list.len());
            first(list.get(from..to).unwrap_or_default().iter().step_by(*step), rest, search)
        }
        Step::Where(filter) => {
            for value in below(value) {
                if filter.holds(value, search)?
                    && let Some(found) = walk(rest, value, search)?
                {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        }
    }
}

/// The first that the steps find in any of these.
fn first<'v>(values: impl IntoIterator<Item = &'v Value>, steps: &[Step], search: &mut Search) -> Found<'v> {
    for value in values {
        if let Some(found) = walk(steps, value, search)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn below(value: &Value) -> impl Iterator<Item = &Value> {
    let members = value.as_object().into_iter().flat_map(|map| map.values());
    value.as_array().into_iter().flatten().chain(members)
}

impl Filter {
    fn holds(&self, value: &Value, search: &mut Search) -> Result<bool, Exhausted> {
        let Some(left) = self.path.first(value, search)? else { return Ok(false) };
        let Some((operator, operand)) = &self.test else { return Ok(true) };
        let right = match operand {
            Operand::Value(value) => Some(value),
            Operand::Path(path) => path.first(value, search)?,
        };
        let Some(right) = right else { return Ok(false) };
        let text = |value: &Value| value.as_str().map_or(0, str::len);
        search.spend(text(left).min(text(right)) / LOOK)?;
        Ok(operator.holds(left, right))
    }
}

impl Operator {
    /// Lists and objects are like nothing, as upstream compares them.
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = match (left, right) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (Value::String(a), Value::String(b)) => a.partial_cmp(b),
            (Value::Bool(a), Value::Bool(b)) => (a == b).then_some(Ordering::Equal),
            (Value::Null, Value::Null) => Some(Ordering::Equal),
            _ => None,
        };
        match (self, order) {
            (Operator::Equal, order) => order.is_some_and(Ordering::is_eq),
            (Operator::Unequal, order) => order.is_none_or(Ordering::is_ne),
            (_, None) => false,
            (Operator::Less, Some(order)) => order.is_lt(),
            (Operator::AtMost, Some(order)) => order.is_le(),
            (Operator::More, Some(order)) => order.is_gt(),
            (Operator::AtLeast, Some(order)) => order.is_ge(),
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
    /// Filters that are open.
    depth: usize,
    steps: usize,
}

impl<'a> Reader<'a> {
    fn takes(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn until(&mut self, end: &str) -> Result<&'a str, NoPath> {
        let (found, rest) = self.rest.split_once(end).ok_or(NoPath::Malformed)?;
        self.rest = rest;
        Ok(found)
    }

    fn needs(&mut self, text: &str) -> Result<(), NoPath> {
        if self.takes(text) { Ok(()) } else { Err(NoPath::Malformed) }
    }

    fn step(&mut self, step: Step, steps: &mut Vec<Step>) -> Result<(), NoPath> {
        self.steps += 1;
        steps.push(step);
        if self.steps > STEPS { Err(NoPath::TooLong) } else { Ok(()) }
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// As far as it goes.
    fn path(&mut self) -> Result<Path, NoPath> {
        let mut steps = Vec::new();
        let _ = self.takes("$") || self.takes("@");
        loop {
            if self.takes("..") {
                self.step(Step::Deep, &mut steps)?;
                if !self.rest.starts_with('[') {
                    let name = self.name()?;
                    self.step(name, &mut steps)?;
                }
            } else if self.takes(".") {
                if !self.rest.starts_with('[') && !self.rest.is_empty() {
                    let name = self.name()?;
                    self.step(name, &mut steps)?;
                }
            } else if self.takes("[") {
                let bracket = self.bracket()?;
                self.step(bracket, &mut steps)?;
            } else {
                return Ok(Path { steps });
            }
        }
    }

    /// A dot in a name has a backslash before it.
    fn name(&mut self) -> Result<Step, NoPath> {
        let mut name = String::new();
        let mut escaped = false;
        let mut end = self.rest.len();
        for (at, c) in self.rest.char_indices() {
            match c {
                _ if escaped => {
                    name.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '.' | '[' | ']' | ')' | ' ' | '=' | '!' | '<' | '>' => {
                    end = at;
                    break;
                }
                _ => name.push(c),
            }
        }
        self.rest = &self.rest[end..];
        match name.as_str() {
            "" => Err(NoPath::Malformed),
            "*" => Ok(Step::Every),
            _ => Ok(Step::Member(name)),
        }
    }

    fn bracket(&mut self) -> Result<Step, NoPath> {
        if self.takes("?(") {
            let filter = self.nested()?;
            return self.needs(")]").map(|()| Step::Where(filter));
        }
        for quote in ["'", "\""] {
            if self.takes(quote) {
                let name = self.until(quote)?.to_owned();
                return self.needs("]").map(|()| Step::Member(name));
            }
        }
        let inside = self.until("]")?.trim();
        if inside == "*" { Ok(Step::Every) } else { place(inside).ok_or(NoPath::Malformed) }
    }

    fn nested(&mut self) -> Result<Filter, NoPath> {
        if self.depth == DEPTH {
            return Err(NoPath::TooDeep);
        }
        self.depth += 1;
        let filter = self.filter();
        self.depth -= 1;
        filter
    }

    fn filter(&mut self) -> Result<Filter, NoPath> {
        self.spaces();
        let path = self.path()?;
        self.spaces();
        let operator = OPERATORS.iter().find(|(text, _)| self.takes(text)).map(|(_, operator)| *operator);
        let Some(operator) = operator else { return Ok(Filter { path, test: None }) };
        self.spaces();
        let operand = self.operand()?;
        self.spaces();
        Ok(Filter { path, test: Some((operator, operand)) })
    }

    fn operand(&mut self) -> Result<Operand, NoPath> {
        for quote in ["'", "\""] {
            if self.takes(quote) {
                return self.until(quote).map(|text| Operand::Value(text.into()));
            }
        }
        if self.rest.starts_with(['@', '$']) {
            return self.path().map(Operand::Path);
        }
        let end = self.rest.find([')', ' ']).ok_or(NoPath::Malformed)?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        serde_json::from_str(text).map(Operand::Value).map_err(|_| NoPath::Malformed)
    }
}

/// `2`, `-1`, `1:`, `:3`, `0:9:2`: items of a list.
fn place(text: &str) -> Option<Step> {
    let parts: Vec<&str> = text.split(':').map(str::trim).collect();
    let number = |text: &str| text.parse::<i64>().ok();
    match parts.as_slice() {
        [one] => number(one).map(Step::Item),
        [from, to, step @ ..] if step.len() <= 1 => {
            let from = if from.is_empty() { 0 } else { number(from)? };
            let to = if to.is_empty() { None } else { Some(number(to)?) };
            let step = step.first().map_or(Some(1), |step| step.parse().ok())?;
            (step > 0).then_some(Step::Range(from, to, step))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_find_what_they_say() {
        let object = json!({
            "spec": {"replicas": 3, "a-b": "dash", "list": [{"n": 1}, {"n": 2}, {"n": 3}]},
            "metadata": {"annotations": {"a.io/b": "note"}},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        for (path, want) in [
            (".spec.replicas", json!(3)),
            (".spec.a-b", json!("dash")),
            (".spec['a-b']", json!("dash")),
            (".spec.list[1].n", json!(2)),
            (".spec.list[-1].n", json!(3)),
            (".spec.list[1:].n", json!(2)),
            (".spec.list[*].n", json!(1)),
            (".spec.list[?(@.n>2)].n", json!(3)),
            (".metadata.annotations.a\\.io/b", json!("note")),
            (".status.conditions[?(@.type==\"Ready\")].status", json!("True")),
            (".status.conditions[?(@.type == 'Ready')].status", json!("True")),
            (
                "..status",
                json!({"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]}),
            ),
        ] {
            assert_eq!(first(path, &object), Ok(Some(&want)), "{path}");
        }
        assert_eq!(first(".spec.none.deeper", &object), Ok(None));
        for wrong in [".spec[", ".spec.x y", ".a[?(@.b==]"] {
            assert_eq!(Path::parse(wrong), Err(NoPath::Malformed), "{wrong}");
        }
    }

    fn first<'v>(path: &str, object: &'v Value) -> Found<'v> {
        Path::parse(path).unwrap().first(object, &mut Search::default())
    }

    #[test]
    fn paths_are_so_deep_and_so_long() {
        let nested = |depth: usize| format!(".a{}@.b{}", "[?(".repeat(depth), ")]".repeat(depth));
        assert!(Path::parse(&nested(DEPTH)).is_ok());
        assert_eq!(Path::parse(&nested(DEPTH + 1)), Err(NoPath::TooDeep));
        assert_eq!(Path::parse(&"[?(".repeat(1_000_000)), Err(NoPath::TooDeep));
        assert!(Path::parse(&".a".repeat(STEPS)).is_ok());
        assert_eq!(Path::parse(&".a".repeat(STEPS + 1)), Err(NoPath::TooLong));
        assert_eq!(Path::parse(&format!(".a[?({}==1)]", "@.b".repeat(200))), Err(NoPath::TooLong));
    }

    /// Each of these steps goes through everything that the one before it found.
    #[test]
    fn a_search_ends() {
        let many: Vec<Value> = (0..1000).map(|n| json!({"n": n, "deep": {"er": {"m": [n]}}})).collect();
        let object = json!({"a": many, "text": "x".repeat(1 << 20)});
        let everything = format!(".a{}", "..[*]".repeat(40));
        for path in [everything.as_str(), "..a..deep..er..m..none", "..[?(@..n==$..none)]"] {
            assert_eq!(first(path, &object), Err(Exhausted), "{path}");
        }
        let mut search = Search::default();
        assert!(Path::parse(".a[900].n").unwrap().first(&object, &mut search).unwrap().is_some());
        assert!(search.left > LOOKS - 10);
    }
}
