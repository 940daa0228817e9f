//! Settings from the environment: `CONVOY_SOME_FLAG` sets `--some-flag`, and a flag on the command line takes precedence. A
//! compose file has one command line for many jobs, and this keeps it short.
//!
//! Not here: what a setting means.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use clap::builder::{BoolishValueParser, Resettable};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

const PREFIX: &str = "CONVOY_";
/// Variables that belong to no flag: those of the program, of docker-compose.yml and deploy/, and of the tests.
const OTHERS: [&str; 11] = [
    crate::log::FORMAT_VARIABLE,
    "CONVOY_OFFLINE",
    "CONVOY_IMAGE",
    "CONVOY_USER",
    "CONVOY_MOUNT_DATA",
    "CONVOY_MOUNT_RUNS",
    "CONVOY_TOKEN",
    "CONVOY_BINARY",
    "CONVOY_PYTHON",
    "CONVOY_COMPOSE_V2",
    "CONVOY_NO_SKIPS",
];
/// A name that is more similar than this to a known one is probably a typo. The common prefix doesn't count.
const SLIP: f64 = 0.9;

/// The command, with environment variables for the flags that the `line` leaves out. A flag that conflicts with one on the
/// line takes no variable: `--steps` on the line overrides `CONVOY_EPOCHS`.
pub(crate) fn adopted(command: Command, line: &[OsString]) -> Command {
    let unless_outdone = |arg: Arg| {
        let is_given = arg.get_long().is_some_and(|long| is_on(line, &format!("--{long}")));
        if is_given || arg.get_env().is_some_and(is_empty) { arg.env(Resettable::Reset) } else { arg }
    };
    command.mut_args(unless_outdone).mut_subcommands(|sub| {
        let excluded = excluded_by(&sub, line);
        sub.mut_args(|arg| match variable(&arg) {
            _ if arg.get_env().is_some_and(is_empty) => arg.env(Resettable::Reset),
            Some(name) if !excluded.contains(&name) && !is_empty(OsStr::new(&name)) => {
                let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
                let arg = arg.env(name);
                if is_switch { arg.value_parser(BoolishValueParser::new()) } else { arg }
            }
            _ => arg,
        })
    })
}

/// The note beside an error about a value that comes from the environment.
pub(crate) fn source_of(error: &clap::Error, line: &[OsString]) -> Option<String> {
    if error.kind() == ErrorKind::InvalidUtf8 {
        let is_wrong = |(name, value): &(OsString, OsString)| {
            name.to_str().is_some_and(|name| name.starts_with(PREFIX)) && value.to_str().is_none()
        };
        let names: Vec<_> =
            std::env::vars_os().filter(is_wrong).filter_map(|(name, _)| name.into_string().ok()).collect();
        return (!names.is_empty()).then(|| {
            format!("note: the values of these environment variables are not UTF-8 text: {}", names.join(", "))
        });
    }
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = shown.split_whitespace().next()?;
    let name = name_of(flag.strip_prefix("--")?);
    let value = std::env::var_os(&name).filter(|_| !is_on(line, flag))?;
    Some(format!("note: the value comes from the environment variable {name}={}", value.display()))
}

/// A note about each flag that an error names and that takes its value from the environment. `command` was [`adopted`].
pub(crate) fn sources_in(error: &str, command: &Command, line: &[OsString]) -> Vec<String> {
    let words: BTreeSet<&str> = error.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
    let Some(sub) = subcommand(command, line) else { return Vec::new() };
    let named = sub.get_arguments().filter_map(|arg| {
        let (flag, name) = (format!("--{}", arg.get_long()?), arg.get_env()?);
        let value = std::env::var_os(name).filter(|_| words.contains(&*flag) && !is_on(line, &flag))?;
        let (name, value) = (name.display(), value.display());
        Some(format!("note: the value of {flag} comes from the environment variable {name}={value}"))
    });
    named.collect()
}

/// The subcommand that the line names.
fn subcommand<'a>(command: &'a Command, line: &[OsString]) -> Option<&'a Command> {
    let is_named = |sub: &&Command| line.iter().skip(1).any(|word| word.to_str() == Some(sub.get_name()));
    command.get_subcommands().find(is_named)
}

/// A note about each variable that a flag on the line excludes.
pub(crate) fn excluded(command: &Command, line: &[OsString]) -> Vec<String> {
    let names = subcommand(command, line).map(|sub| excluded_by(sub, line)).unwrap_or_default();
    let set = names.into_iter().filter(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    set.map(|name| {
        format!(
            "note: the environment variable {name} has no effect, because a flag on the command line conflicts with it"
        )
    })
    .collect()
}

/// A note about each variable whose name is almost that of a setting.
pub(crate) fn slips(command: &Command) -> Vec<String> {
    let flags = command.get_subcommands().flat_map(Command::get_arguments).filter_map(variable);
    let known: Vec<String> = flags.chain(OTHERS.map(str::to_owned)).collect();
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    set.filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .filter_map(|name| slip(&name, &known))
        .collect()
}

fn slip(name: &str, known: &[String]) -> Option<String> {
    let own = |name: &str| name.strip_prefix(PREFIX).unwrap_or_default().to_owned();
    let near = known.iter().map(|known| (strsim::jaro_winkler(&own(name), &own(known)), known));
    let (likeness, nearest) = near.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (likeness > SLIP).then(|| format!("note: the environment variable {name} has no effect; did you mean {nearest}?"))
}

fn excluded_by(command: &Command, line: &[OsString]) -> Vec<String> {
    let on_line = |arg: &&Arg| arg.get_long().is_some_and(|long| is_on(line, &format!("--{long}")));
    let given: Vec<&Arg> = command.get_arguments().filter(on_line).collect();
    let excludes = |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).iter().any(|arg| arg.get_id() == b.get_id());
    let excluded = |arg: &&Arg| given.iter().any(|given| excludes(given, arg) || excludes(arg, given));
    command.get_arguments().filter(excluded).filter_map(variable).collect()
}

fn is_on(line: &[OsString], flag: &str) -> bool {
    let given = |word: &str| word == flag || word.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='));
    line.iter().filter_map(|word| word.to_str()).any(given)
}

/// Compose files pass variables that aren't set as empty ones.
fn is_empty(name: &OsStr) -> bool {
    std::env::var_os(name).is_some_and(|value| value.is_empty())
}

/// The variable of a public flag.
fn variable(arg: &Arg) -> Option<String> {
    let long = arg.get_long().filter(|long| !arg.is_hide_set() && !["help", "version"].contains(long))?;
    Some(name_of(long))
}

fn name_of(long: &str) -> String {
    format!("{PREFIX}{}", long.to_uppercase().replace('-', "_"))
}
