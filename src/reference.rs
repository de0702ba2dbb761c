//! The pages in `docs/reference`, made from the types that they describe and from the command line.
//!
//! `schemars` derives JSON Schemas from the same attributes as serde, with docs and defaults; here they become tables. The derives are
//! there in tests alone. A page's head, down to a comment, is written by hand; what is below is compared, and made anew with
//! `INSTA_UPDATE=always`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use schemars::SchemaGenerator;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::ir::*;
use crate::job::cluster::*;
use crate::job::model::*;
use crate::job::profile::*;
use crate::job::sms::CommunicationSms;
use crate::job::training::*;
use crate::machine::{Factors, Interference, LinkModel, Machine, Measured, PodModel};
use crate::plan::*;

/// The last line of what is written by hand.
const MARK: &str = "<!-- Made from the types by `cargo test --lib reference`; not to be edited below. -->";

/// Numbers with units: their names say enough.
const UNITS: [(&str, &str); 3] = [("Nanos", "ns"), ("Bytes", "bytes"), ("Flops", "FLOPs")];

/// A type that a page has a section on.
struct Described {
    name: &'static str,
    schema: fn(&mut SchemaGenerator),
    /// Its fields or variants, as serde reads them, in order.
    names: fn() -> Vec<&'static str>,
}

macro_rules! described {
    ($($name:ident),* $(,)?) => {
        vec![$(Described {
            name: stringify!($name),
            schema: |generator| drop(generator.subschema_for::<$name>()),
            names: names::<$name>,
        }),*]
    };
}

/// What the reader says that there is when it meets a name that there is not. Empty for what has no names.
fn names<T: DeserializeOwned>() -> Vec<&'static str> {
    use ron::Error::{NoSuchEnumVariant, NoSuchStructField};
    for wrong in ["(no_such_name: 0)", "NoSuchName"] {
        match ron::from_str::<T>(wrong).map_err(|error| error.code) {
            Err(NoSuchStructField { expected, .. } | NoSuchEnumVariant { expected, .. }) => return expected.to_vec(),
            Err(_) => {}
            Ok(_) => panic!("{} takes fields that it does not know", std::any::type_name::<T>()),
        }
    }
    Vec::new()
}

/// A page.
struct Page {
    file: &'static str,
    /// Of the files that it describes, if they say theirs.
    version: Option<u32>,
    /// In the order of their sections.
    types: Vec<Described>,
}

fn pages() -> Vec<Page> {
    let job = described![
        Model,
        Attention,
        MultiHead,
        Window,
        Mla,
        Moe,
        Layers,
        Precision,
        Dtype,
        Cluster,
        Gpu,
        Link,
        Pods,
        MeasuredGpu,
        MeasuredInterference,
        Training,
        ScheduleKind,
        Placement,
        Recompute,
        PairOrder,
        CommunicationSms,
    ];
    let plan = described![
        Plan,
        Origin,
        Layout,
        PlanStage,
        Unit,
        Held,
        Pair,
        Program,
        ProgramKind,
        ProgramOp,
        Component,
        Phase,
        Step,
        Tokens,
        Work,
        Kernel,
        Rate,
        Certificate,
        PlanRank,
        Ring,
        RingOf,
        Item,
        Task,
        Machine,
        LinkModel,
        PodModel,
        Interference,
        Measured,
        Factors,
    ];
    let profile = described![Profile, ProfiledOp, Point];
    vec![
        Page { file: "job.md", version: None, types: job },
        Page { file: "plan.md", version: Some(crate::plan::VERSION), types: plan },
        Page { file: "profile.md", version: Some(crate::job::profile::VERSION), types: profile },
    ]
}

/// All schemas, and the page that each type is on.
struct Schemas {
    definitions: Map<String, Value>,
    page_of: BTreeMap<&'static str, &'static str>,
}

impl Schemas {
    fn new(pages: &[Page]) -> Self {
        let mut generator = SchemaGenerator::default();
        let mut page_of = BTreeMap::new();
        for page in pages {
            for described in &page.types {
                (described.schema)(&mut generator);
                assert!(page_of.insert(described.name, page.file).is_none(), "{} is on two pages", described.name);
            }
        }
        let definitions = generator.take_definitions(true);
        let without = definitions.keys().find(|&name| !page_of.contains_key(name.as_str()) && unit(name).is_none());
        assert_eq!(without, None, "this type is in a file, and on no page");
        Self { definitions, page_of }
    }

    /// Everything below the mark.
    fn page(&self, page: &Page) -> String {
        let mut text = String::new();
        if let Some(version) = page.version {
            let _ = writeln!(text, "\nThis is version {version}; a file of another is refused.");
        }
        let file = page.file;
        for described in &page.types {
            let schema = &self.definitions[described.name];
            let _ = write!(text, "\n## {}\n\n{}\n", described.name, prose(about(schema)));
            let names = (described.names)();
            match (schema.get("properties"), variants(schema)) {
                (Some(fields), _) => self.fields(file, &mut text, &names, fields, schema),
                (None, Some(variants)) => self.variants(file, &mut text, &names, variants, schema),
                (None, None) => {
                    let _ = writeln!(text, "\nWritten as `{}`{}.", plain(schema), self.see(file, schema));
                }
            }
        }
        text
    }

    /// The table of a struct's fields.
    fn fields(&self, page: &str, text: &mut String, names: &[&str], fields: &Value, schema: &Value) {
        let known = fields.as_object().expect("properties are an object");
        let mut sorted = names.to_vec();
        sorted.sort_unstable();
        assert!(known.keys().eq(sorted), "serde reads {names:?}, the schema has {:?}", known.keys());
        text.push_str("\n| field | type | default | meaning |\n|---|---|---|---|\n");
        for name in names {
            let field = &fields[name];
            let required = entries(schema, "required").any(|of| of == name);
            let default = match field.get("default") {
                Some(default) => self.default(field, default),
                None if required => "required".to_owned(),
                None if optional(field) => "`None`".to_owned(),
                None => "may be left out".to_owned(),
            };
            let _ = writeln!(text, "| `{name}` | {} | {default} | {} |", self.kind(page, field), cell(about(field)));
        }
    }

    /// The table of an enum's variants.
    fn variants(&self, page: &str, text: &mut String, names: &[&str], variants: &[Value], schema: &Value) {
        text.push_str("\n| value | meaning |\n|---|---|\n");
        let mut found = Vec::new();
        for variant in variants {
            let (name, written) = written(variant, schema);
            found.extend(name);
            let inner = variant.get("properties").and_then(|of| of.as_object()?.values().next());
            let fields = inner.map_or_else(String::new, |inner| {
                let about = |(name, required): (&str, bool)| {
                    let left_out = if required { "" } else { " May be left out." };
                    format!(" `{name}`: {}{left_out}", cell(about(&inner["properties"][name])))
                };
                fields(inner).into_iter().map(about).collect()
            });
            let see = self.see(page, inner.unwrap_or(variant));
            let _ = writeln!(text, "| `{written}` | {}{fields}{see} |", cell(about(variant)));
        }
        assert!(names.is_empty() || found == names, "serde reads {names:?}, the schema has {found:?}");
    }

    /// A type, with links.
    fn kind(&self, page: &str, schema: &Value) -> String {
        kind(schema, &|name| match self.page_of[name] {
            on if on == page => format!("[{name}](#{})", name.to_lowercase()),
            other => format!("[{name}]({other}#{})", name.to_lowercase()),
        })
    }

    /// Where the types within are described.
    fn see(&self, page: &str, schema: &Value) -> String {
        let mut within = Vec::new();
        references(schema, &mut within);
        within.retain(|name| unit(name).is_none());
        within.dedup();
        let links: Vec<String> =
            within.iter().map(|name| self.kind(page, &serde_json::json!({ "$ref": name }))).collect();
        if links.is_empty() { String::new() } else { format!(" ({})", links.join(", ")) }
    }

    /// A default value, as a file would have it.
    fn default(&self, field: &Value, default: &Value) -> String {
        match default {
            Value::Null => "`None`".to_owned(),
            Value::Object(of) => {
                let fields = reference(field).and_then(|name| self.definitions[name].get("properties"));
                let fields = fields.unwrap_or_else(|| panic!("no words for the default {default}"));
                let own = of.iter().all(|(name, value)| fields[name].get("default").is_none_or(|own| own == value));
                assert!(own, "the default {default} is not that of its fields");
                "those of its fields".to_owned()
            }
            Value::String(word) => {
                let of = reference(field).map(|name| &self.definitions[name]);
                match of.and_then(|of| Some((of, variants(of)?))) {
                    Some((of, variants)) => {
                        let named = |variant: &&Value| variant.get("const") == Some(default);
                        let variant = variants.iter().find(named).expect("the default is a variant");
                        format!("`{}`", written(variant, of).1)
                    }
                    None => format!("`\"{word}\"`"),
                }
            }
            other => format!("`{other}`"),
        }
    }
}

fn unit(name: &str) -> Option<&'static str> {
    UNITS.iter().find(|(unit, _)| *unit == name).map(|(_, shown)| *shown)
}

fn about(schema: &Value) -> &str {
    schema.get("description").and_then(Value::as_str).unwrap_or_default()
}

fn entries<'a>(schema: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    schema.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// The type that a schema names: by itself, or as one that may be left out.
fn reference(schema: &Value) -> Option<&str> {
    let own = schema.get("$ref").and_then(Value::as_str);
    let path = own.or_else(|| entries(schema, "anyOf").find_map(|of| of.get("$ref")?.as_str()))?;
    path.rsplit('/').next()
}

/// All types that a schema names, at any depth.
fn references<'a>(schema: &'a Value, found: &mut Vec<&'a str>) {
    match schema {
        Value::Object(of) => {
            found.extend(of.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()));
            of.values().for_each(|value| references(value, found));
        }
        Value::Array(of) => of.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn optional(schema: &Value) -> bool {
    entries(schema, "type").any(|of| of == "null") || entries(schema, "anyOf").any(|of| of["type"] == "null")
}

fn variants(schema: &Value) -> Option<&[Value]> {
    ["oneOf", "anyOf"].iter().find_map(|key| schema.get(key)?.as_array()).map(Vec::as_slice)
}

/// The name of a variant of an enum, unless it has none, and how it is written.
fn written<'a>(variant: &'a Value, of: &'a Value) -> (Option<&'a str>, String) {
    let nameless = |variant: &Value| variant.get("const").is_none() && variant.get("properties").is_none();
    if let Some(name) = variant.get("const").and_then(Value::as_str) {
        // Where a number can stand in place of a word, the word is text.
        let quoted = variants(of).is_some_and(|all| all.iter().any(nameless));
        return (Some(name), if quoted { format!("\"{name}\"") } else { name.to_owned() });
    }
    let Some((name, inner)) = variant.get("properties").and_then(|of| of.as_object()?.iter().next()) else {
        return (None, plain(variant));
    };
    let fields: Vec<String> = fields(inner)
        .into_iter()
        .map(|(field, _)| format!("{field}: {}", plain(&inner["properties"][field])))
        .collect();
    let inner = plain(inner);
    let inner = inner.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).unwrap_or(&inner);
    (Some(name), if fields.is_empty() { format!("{name}({inner})") } else { format!("{name}({})", fields.join(", ")) })
}

/// The fields of a variant: those that must be there, in their order, then those that may be left out.
fn fields(inner: &Value) -> Vec<(&str, bool)> {
    let required: Vec<&str> = entries(inner, "required").filter_map(Value::as_str).collect();
    let all = inner.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys).map(String::as_str);
    let others = all.filter(|name| !required.contains(name)).map(|name| (name, false));
    required.iter().map(|&name| (name, true)).chain(others).collect()
}

/// A type in plain words.
fn plain(schema: &Value) -> String {
    kind(schema, &str::to_owned)
}

/// A type in words; `named` has what stands for one that has a section.
fn kind(schema: &Value, named: &dyn Fn(&str) -> String) -> String {
    if let Some(name) = reference(schema) {
        return unit(name).map_or_else(|| named(name), str::to_owned);
    }
    let list = schema["type"].as_array().and_then(|of| of.iter().find(|kind| *kind != "null"));
    match list.unwrap_or(&schema["type"]).as_str() {
        Some("integer") => "integer".to_owned(),
        Some("number") => "number".to_owned(),
        Some("string") => "text".to_owned(),
        Some("boolean") => "bool".to_owned(),
        Some("array") => match schema.get("prefixItems") {
            Some(_) => {
                let parts: Vec<String> = entries(schema, "prefixItems").map(|part| kind(part, named)).collect();
                format!("({})", parts.join(", "))
            }
            None => format!("list of {}", kind(&schema["items"], named)),
        },
        Some("object") => match schema.get("additionalProperties") {
            Some(value) if value.is_object() => format!("map to {}", kind(value, named)),
            _ => String::new(),
        },
        _ => panic!("no words for {schema}"),
    }
}

/// Docs as Markdown: without rustdoc's links, and with headings below those of the section.
fn prose(docs: &str) -> String {
    let lines = docs.lines().map(|line| if line.starts_with('#') { format!("##{line}") } else { line.to_owned() });
    unlinked(&lines.collect::<Vec<_>>().join("\n"))
}

/// Docs in a cell of a table.
fn cell(docs: &str) -> String {
    unlinked(&docs.split_whitespace().collect::<Vec<_>>().join(" ")).replace('|', "\\|")
}

/// "[`Plan`]" and "[`Plan`](super::Plan)" are `Plan`.
fn unlinked(docs: &str) -> String {
    let mut text = String::new();
    let mut rest = docs;
    while let Some((before, after)) = rest.split_once("[`") {
        let Some((name, behind)) = after.split_once("`]") else { break };
        let _ = write!(text, "{before}`{name}`");
        let target = behind.strip_prefix('(').and_then(|target| target.split_once(')'));
        rest = target.map_or(behind, |(_, behind)| behind);
    }
    text + rest
}

/// The help of every command, as it is printed; options that several have in common under the first of them.
fn commands() -> String {
    let mut command = crate::cli::command();
    command.build();
    let mut text = String::new();
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    for command in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let name = command.get_name().to_owned();
        let help = command.render_long_help().to_string();
        let mut parts: Vec<String> = Vec::new();
        for line in help.lines().map(str::trim_end) {
            match parts.last_mut() {
                Some(part) if !line.ends_with(':') || line.starts_with(' ') => *part += &format!("{line}\n"),
                _ => parts.push(format!("{line}\n")),
            }
        }
        for part in &mut parts {
            let heading = part.lines().next().unwrap_or_default().to_owned();
            let first = shown.entry(part.trim_end().to_owned()).or_insert_with(|| name.clone());
            if *first != name && !["Arguments:", "Options:"].contains(&heading.as_str()) {
                *part = format!("{heading}\n  those of `{first}`\n\n");
            }
        }
        let _ = write!(text, "\n## {name}\n\n```text\n{}\n```\n", parts.concat().trim_end());
    }
    text
}

/// Compares what is below the mark of a page, or writes it.
fn compare(page: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference").join(page);
    let stands = fs::read_to_string(&path).unwrap_or_else(|error| panic!("docs/reference/{page}: {error}"));
    let (head, below) = stands.split_once(MARK).unwrap_or_else(|| panic!("docs/reference/{page} has no line\n{MARK}"));
    if below.trim() == made.trim() {
        return;
    }
    if std::env::var("INSTA_UPDATE").is_ok_and(|how| how == "always") {
        fs::write(&path, format!("{head}{MARK}\n{made}")).expect("the page can be written");
        return;
    }
    let difference = similar::TextDiff::from_lines(below.trim(), made.trim());
    panic!(
        "docs/reference/{page} is not what the types say; `INSTA_UPDATE=always cargo test --lib reference` makes it anew:\n{}",
        difference.unified_diff().context_radius(1)
    );
}

#[test]
fn pages_are_what_the_types_say() {
    let pages = pages();
    let schemas = Schemas::new(&pages);
    for page in &pages {
        compare(page.file, &schemas.page(page));
    }
}

#[test]
fn the_page_of_commands_is_what_they_print() {
    compare("commands.md", &commands());
}

#[test]
fn docs_lose_their_links() {
    assert_eq!(unlinked("see [`Plan`], [`Held`](super::Held) and [1]"), "see `Plan`, `Held` and [1]");
    assert_eq!(cell("a |\n b"), "a \\| b");
    assert_eq!(prose("Says.\n\n# Memory\nMuch."), "Says.\n\n### Memory\nMuch.");
}
