//! JSONPath as Kubernetes has it: how the columns of custom resources say where their cells are.

use serde_json::Value;

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

/// Where something is in an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Path {
    steps: Vec<Step>,
}

impl Path {
    /// `None` for what is no path.
    pub fn parse(text: &str) -> Option<Path> {
        let mut reader = Reader { rest: text };
        let path = reader.path()?;
        reader.rest.is_empty().then_some(path)
    }

    /// The first value that is there.
    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.find(value).into_iter().next()
    }

    fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![value];
        for step in &self.steps {
            found = found.into_iter().flat_map(|value| step.from(value)).collect();
        }
        found
    }
}

impl Step {
    fn from<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
        let from_end = |at: i64| usize::try_from(if at < 0 { at + length } else { at }).ok();
        match self {
            Step::Member(name) => value.get(name).into_iter().collect(),
            Step::Every => below(value),
            Step::Deep => {
                let mut all = vec![value];
                all.extend(below(value).into_iter().flat_map(|value| Step::Deep.from(value)));
                all
            }
            Step::Item(at) => from_end(*at).and_then(|at| list.get(at)).into_iter().collect(),
            Step::Range(from, to, step) => {
                let from = from_end(*from).unwrap_or(0);
                let to = to.map_or(Some(list.len()), from_end).unwrap_or(0).min(list.len());
                list.get(from..to).unwrap_or_default().iter().step_by(*step).collect()
            }
            Step::Where(filter) => below(value).into_iter().filter(|value| filter.holds(value)).collect(),
        }
    }
}

fn below(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

impl Filter {
    fn holds(&self, value: &Value) -> bool {
        let Some(left) = self.path.first(value) else { return false };
        let Some((operator, operand)) = &self.test else { return true };
        let right = match operand {
            Operand::Value(value) => Some(value),
            Operand::Path(path) => path.first(value),
        };
        right.is_some_and(|right| operator.holds(left, right))
    }
}

impl Operator {
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = match (left, right) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (Value::String(a), Value::String(b)) => a.partial_cmp(b),
            (a, b) => (a == b).then_some(std::cmp::Ordering::Equal),
        };
        match (self, order) {
            (Operator::Equal, order) => order.is_some_and(std::cmp::Ordering::is_eq),
            (Operator::Unequal, order) => order.is_none_or(std::cmp::Ordering::is_ne),
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

    fn until(&mut self, end: &str) -> Option<&'a str> {
        let (found, rest) = self.rest.split_once(end)?;
        self.rest = rest;
        Some(found)
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// As far as it goes.
    fn path(&mut self) -> Option<Path> {
        let mut steps = Vec::new();
        let _ = self.takes("$") || self.takes("@");
        loop {
            if self.takes("..") {
                steps.push(Step::Deep);
                if !self.rest.starts_with('[') {
                    steps.push(self.name()?);
                }
            } else if self.takes(".") {
                if !self.rest.starts_with('[') && !self.rest.is_empty() {
                    steps.push(self.name()?);
                }
            } else if self.takes("[") {
                steps.push(self.bracket()?);
            } else {
                return Some(Path { steps });
            }
        }
    }

    /// A dot in a name has a backslash before it.
    fn name(&mut self) -> Option<Step> {
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
            "" => None,
            "*" => Some(Step::Every),
            _ => Some(Step::Member(name)),
        }
    }

    fn bracket(&mut self) -> Option<Step> {
        if self.takes("?(") {
            let filter = self.filter()?;
            return self.takes(")]").then_some(Step::Where(filter));
        }
        for quote in ["'", "\""] {
            if self.takes(quote) {
                let name = self.until(quote)?.to_owned();
                return self.takes("]").then_some(Step::Member(name));
            }
        }
        let inside = self.until("]")?.trim();
        if inside == "*" {
            return Some(Step::Every);
        }
        let parts: Vec<&str> = inside.split(':').map(str::trim).collect();
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

    fn filter(&mut self) -> Option<Filter> {
        self.spaces();
        let path = self.path()?;
        self.spaces();
        let operator = OPERATORS.iter().find(|(text, _)| self.takes(text)).map(|(_, operator)| *operator);
        let Some(operator) = operator else { return Some(Filter { path, test: None }) };
        self.spaces();
        let operand = self.operand()?;
        self.spaces();
        Some(Filter { path, test: Some((operator, operand)) })
    }

    fn operand(&mut self) -> Option<Operand> {
        for quote in ["'", "\""] {
            if self.takes(quote) {
                return self.until(quote).map(|text| Operand::Value(text.into()));
            }
        }
        if self.rest.starts_with(['@', '$']) {
            return self.path().map(Operand::Path);
        }
        let end = self.rest.find([')', ' '])?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        serde_json::from_str(text).ok().map(Operand::Value)
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
            assert_eq!(Path::parse(path).unwrap().first(&object), Some(&want), "{path}");
        }
        assert_eq!(Path::parse(".spec.none.deeper").unwrap().first(&object), None);
        assert!(Path::parse(".spec[").is_none() && Path::parse(".spec.x y").is_none());
    }
}
