//! The functions a build file may call.

use std::collections::BTreeMap;

use starlark::codemap::FileSpan;
use starlark::collections::SmallMap;
use starlark::environment::{Globals, GlobalsBuilder, LibraryExtension};
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::dict::DictRef;
use starlark::values::list::ListRef;
use starlark::values::none::NoneType;
use starlark::values::tuple::TupleRef;
use starlark::values::{UnpackValue, Value as StarlarkValue};

use super::config::Configuration;
use super::context::Context;
use super::error::BuildFileError;
use super::rules::{AttrKind, Rule, TOLERATED};
use super::target::{Target, Value};
use crate::Label;
use crate::build::{Hint, nearest};

pub(super) fn globals() -> Globals {
    let extensions = [LibraryExtension::StructType, LibraryExtension::Print];
    GlobalsBuilder::extended_by(&extensions)
        .with(rules)
        .with(functions)
        .with_namespace("native", |native| {
            rules(native);
            functions(native);
        })
        .build()
}

fn other(message: impl Into<String>) -> starlark::Error {
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Message(String);
    starlark::Error::new_other(Message(message.into()))
}

fn context<'a, 'e>(eval: &Evaluator<'_, 'a, 'e>) -> starlark::Result<&'a Context<'e>> {
    eval.extra
        .and_then(|extra| extra.downcast_ref::<Context<'e>>())
        .ok_or_else(|| other("this function cannot be called here"))
}

impl<'a> Context<'a> {
    fn package(&self) -> starlark::Result<&'a str> {
        self.package.ok_or_else(|| {
            other("targets and files are known in a BUILD file only: put this into a function and call it there")
        })
    }

    /// Keeps an error that knows its place, and gives the evaluator another to carry.
    fn nested(&self, error: BuildFileError) -> starlark::Error {
        let message = error.to_string();
        self.nested.borrow_mut().get_or_insert(error);
        other(message)
    }
}

macro_rules! rule_functions {
    ($($name:ident)*) => {
        #[starlark_module]
        fn rules(builder: &mut GlobalsBuilder) {
            $(
                fn $name<'v>(
                    #[starlark(kwargs)] attrs: SmallMap<String, StarlarkValue<'v>>,
                    eval: &mut Evaluator<'v, '_, '_>,
                ) -> starlark::Result<NoneType> {
                    declare(stringify!($name), &attrs, eval)
                }
            )*
        }

        #[cfg(test)]
        pub(super) const RULE_FUNCTIONS: &[&str] = &[$(stringify!($name)),*];
    };
}

rule_functions! {
    cc_library cxx_library cc_binary cxx_binary py_library python_library py_binary python_binary sh_binary
    filegroup genrule alias config_setting mica_tree mica_base mica_package
}

#[starlark_module]
fn functions(builder: &mut GlobalsBuilder) {
    fn package<'v>(
        #[starlark(kwargs)] _attrs: SmallMap<String, StarlarkValue<'v>>,
    ) -> starlark::Result<NoneType> {
        Ok(NoneType)
    }

    fn licenses<'v>(#[starlark(args)] _licenses: StarlarkValue<'v>) -> starlark::Result<NoneType> {
        Ok(NoneType)
    }

    fn exports_files<'v>(
        #[starlark(args)] _files: StarlarkValue<'v>,
        #[starlark(kwargs)] _attrs: SmallMap<String, StarlarkValue<'v>>,
    ) -> starlark::Result<NoneType> {
        Ok(NoneType)
    }

    fn package_name(eval: &mut Evaluator) -> starlark::Result<String> {
        Ok(context(eval)?.package()?.to_owned())
    }

    fn glob<'v>(
        include: StarlarkValue<'v>,
        exclude: Option<StarlarkValue<'v>>,
        #[starlark(require = named, default = true)] allow_empty: bool,
        #[starlark(require = named)] exclude_directories: Option<i32>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Vec<String>> {
        let context = context(eval)?;
        let package = context.package()?;
        if exclude_directories == Some(0) {
            return Err(other("glob gives files only; list folders with mica_tree"));
        }
        let include = strings(include).map_err(|why| other(format!("glob's patterns: {why}")))?;
        let exclude = exclude
            .map_or_else(|| Ok(Vec::new()), strings)
            .map_err(|why| other(format!("glob's exclude: {why}")))?;
        let found =
            context.loader.files.glob(package, &include, &exclude).map_err(
                |error| match error {
                    Ok(message) => other(message),
                    Err(nested) => context.nested(nested),
                },
            )?;
        if found.is_empty() && !allow_empty {
            return Err(other("glob matches no file, and allow_empty is False"));
        }
        Ok(found)
    }

    fn select<'v>(
        #[starlark(require = pos)] choices: DictRef<'v>,
        #[starlark(require = named)] no_match_error: Option<&str>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<StarlarkValue<'v>> {
        choose(context(eval)?, &choices, no_match_error)
    }
}

/// The one value whose key holds.
fn choose<'v>(
    context: &Context<'_>,
    choices: &DictRef<'v>,
    no_match_error: Option<&str>,
) -> starlark::Result<StarlarkValue<'v>> {
    let mut default = None;
    let mut chosen: Option<(&str, StarlarkValue<'v>)> = None;
    for (key, value) in choices.iter() {
        let Some(key) = key.unpack_str() else {
            return Err(other(format!("select's keys are strings, not {}", key.get_type())));
        };
        if Configuration::is_default(key) {
            default = Some(value);
        } else if holds(context, key)? {
            if let Some((before, other_value)) = chosen
                && !other_value.equals(value)?
            {
                return Err(other(format!("both `{before}` and `{key}` hold in this select")));
            }
            chosen = Some((key, value));
        }
    }
    chosen.map(|(_, value)| value).or(default).ok_or_else(|| match no_match_error {
        Some(message) => other(message),
        None => other("no key of this select holds, and it has no //conditions:default"),
    })
}

fn holds(context: &Context<'_>, key: &str) -> starlark::Result<bool> {
    let constraint = context.loader.config.constraint(key).map_err(other)?;
    if let Some(holds) = constraint {
        return Ok(holds);
    }
    let label = Label::parse_in(key, context.package.unwrap_or_default())
        .map_err(|error| other(error.to_string()))?;
    let own = if Some(label.package()) == context.package {
        context.targets.borrow().get(label.name()).cloned()
    } else {
        None
    };
    let setting = match own {
        Some(setting) => setting,
        None if Some(label.package()) == context.package => {
            return Err(other(format!("{label} is not declared above this select")));
        }
        None => context.loader.declared(&label).map_err(|error| context.nested(error))?,
    };
    context.loader.setting_holds(&setting).map_err(other)
}

/// Declares a target.
fn declare<'v>(
    rule: &'static str,
    given: &SmallMap<String, StarlarkValue<'v>>,
    eval: &Evaluator<'v, '_, '_>,
) -> starlark::Result<NoneType> {
    let context = context(eval)?;
    let package = context.package()?;
    let rule = Rule::named(rule).ok_or_else(|| other(format!("{rule} is no rule")))?;
    let name = given
        .get("name")
        .and_then(|name| name.unpack_str())
        .ok_or_else(|| other(format!("{} needs a `name`, a string", rule.name)))?;
    let label =
        Label::parse_in(&format!(":{name}"), package).map_err(|error| other(error.to_string()))?;
    let span = declared_at(eval)?;
    let mut values = BTreeMap::new();
    for (attr, value) in given {
        if attr == "name"
            || TOLERATED.contains(&attr.as_str())
            || is_buck_labels(rule, attr, *value)
        {
            continue;
        }
        let Some(attr) = rule.attr(attr) else { return Err(unknown_attr(rule, attr)) };
        if value.is_none() {
            continue;
        }
        let value = convert(attr.kind, *value, package)
            .map_err(|why| other(format!("attribute `{}` of {}: {why}", attr.name, rule.name)))?;
        values.insert(attr.name, value);
    }
    if let Some(attr) =
        rule.attrs.iter().find(|attr| attr.required && !values.contains_key(attr.name))
    {
        return Err(other(format!("{} `{name}` needs the attribute `{}`", rule.name, attr.name)));
    }
    let target = Target { label, rule, span, values, deps: BTreeMap::new() };
    if let Some(before) = context.targets.borrow_mut().insert(name.to_owned(), target) {
        return Err(other(format!("`{name}` is declared twice, first at {}", before.at())));
    }
    Ok(NoneType)
}

/// Buck's `labels` are a list of tags; a package's are a dict of notes.
fn is_buck_labels(rule: &Rule, attr: &str, value: StarlarkValue<'_>) -> bool {
    attr == "labels" && rule.attr(attr).is_none() && ListRef::from_value(value).is_some()
}

fn unknown_attr(rule: &Rule, attr: &str) -> starlark::Error {
    let known = rule.attrs.iter().map(|attr| attr.name).chain(["name", "visibility"]);
    let hint = nearest(attr, known.map(str::to_owned));
    other(format!("{} has no attribute `{attr}`{}", rule.name, Hint(&hint)))
}

/// The call in the build file itself, also where a macro made the target: that is where people look.
fn declared_at(eval: &Evaluator<'_, '_, '_>) -> starlark::Result<FileSpan> {
    let frames = eval.call_stack().into_frames();
    frames
        .into_iter()
        .find_map(|frame| frame.location)
        .ok_or_else(|| other("a rule is called in a build file"))
}

fn convert(kind: AttrKind, value: StarlarkValue<'_>, package: &str) -> Result<Value, String> {
    let wrong = |wanted| format!("{wanted} is wanted here, not {}", value.get_type());
    let label = |text: &str| Label::parse_in(text, package).map_err(|error| error.to_string());
    Ok(match kind {
        AttrKind::Bool => match (value.unpack_bool(), value.unpack_i32()) {
            (Some(flag), _) => Value::Bool(flag),
            (_, Some(0)) => Value::Bool(false),
            (_, Some(1)) => Value::Bool(true),
            _ => return Err(wrong("True or False")),
        },
        AttrKind::Int => Value::Int(int(value).ok_or_else(|| wrong("a whole number"))?),
        AttrKind::Float => Value::Float(float(value).ok_or_else(|| wrong("a number"))?),
        AttrKind::Str => {
            Value::Str(value.unpack_str().ok_or_else(|| wrong("a string"))?.to_owned())
        }
        AttrKind::Strs => Value::Strs(strings(value)?),
        AttrKind::Dict => Value::Dict(dict(value)?),
        AttrKind::Label => {
            Value::Labels(vec![label(value.unpack_str().ok_or_else(|| wrong("a label"))?)?])
        }
        AttrKind::Labels => {
            Value::Labels(strings(value)?.iter().map(|text| label(text)).collect::<Result<_, _>>()?)
        }
    })
}

fn int(value: StarlarkValue<'_>) -> Option<i64> {
    // A bool is no number in Starlark, and the crate agrees.
    i64::unpack_value(value).ok().flatten()
}

fn float(value: StarlarkValue<'_>) -> Option<f64> {
    use starlark::values::float::UnpackFloat;
    UnpackFloat::unpack_value(value).ok().flatten().map(|UnpackFloat(float)| float)
}

/// A list or tuple of strings; `None` is empty.
fn strings(value: StarlarkValue<'_>) -> Result<Vec<String>, String> {
    let items = if let Some(list) = ListRef::from_value(value) {
        list.content()
    } else if let Some(tuple) = TupleRef::from_value(value) {
        tuple.content()
    } else if value.is_none() {
        &[]
    } else {
        return Err(format!("a list of strings is wanted here, not {}", value.get_type()));
    };
    items
        .iter()
        .map(|item| match item.unpack_str() {
            Some(text) => Ok(text.to_owned()),
            None => {
                Err(format!("a list of strings is wanted here, but it holds {}", item.get_type()))
            }
        })
        .collect()
}

fn dict(value: StarlarkValue<'_>) -> Result<BTreeMap<String, String>, String> {
    let dict = DictRef::from_value(value)
        .ok_or_else(|| format!("a dict of strings is wanted here, not {}", value.get_type()))?;
    dict.iter()
        .map(|(key, value)| match (key.unpack_str(), value.unpack_str()) {
            (Some(key), Some(value)) => Ok((key.to_owned(), value.to_owned())),
            _ => Err(format!("its keys and values are strings, but it holds {key}: {value}")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::rules::RULES;
    use super::RULE_FUNCTIONS;

    #[test]
    fn every_rule_can_be_called() {
        let listed = RULES.map(|rule| rule.name);
        assert_eq!(RULE_FUNCTIONS, listed);
    }
}
