//! Settings from the environment: what a flag `--some-flag` says may be said by `CONVOY_SOME_FLAG` too, and the flag wins.
//! So that a compose file, which has one command line for many jobs, stays short.
//!
//! Not here: what a setting means.

use std::ffi::{OsStr, OsString};

use clap::builder::{BoolishValueParser, Resettable};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};

const PREFIX: &str = "CONVOY_";
/// Those that are no flag's: of the program, of docker-compose.yml and what lies in deploy/, and of the tests.
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
/// Names closer than this to a known one, what all begin with aside, are taken for a slip.
const SLIP: f64 = 0.9;

/// The command, whose flags take what the `line` leaves out from the environment. A flag that something on the line
/// excludes takes nothing: `--steps` on the line outdoes `CONVOY_EPOCHS`.
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

/// What to say beside an error about a value that stands in the environment and not on the line.
pub(crate) fn source_of(error: &clap::Error, line: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = shown.split_whitespace().next()?;
    let name = name_of(flag.strip_prefix("--")?);
    let value = std::env::var_os(&name).filter(|_| !is_on(line, flag))?;
    Some(format!("note: it stands in the environment, as {name}={}", value.display()))
}

/// A word about each variable whose name is nearly, but not quite, a setting's.
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
    (likeness > SLIP)
        .then(|| format!("note: no setting is called {name}, which is set in the environment; {nearest} is"))
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

/// Compose files pass variables that aren't set on as empty ones.
fn is_empty(name: &OsStr) -> bool {
    std::env::var_os(name).is_some_and(|value| value.is_empty())
}

/// The variable of a flag that people may give.
fn variable(arg: &Arg) -> Option<String> {
    let long = arg.get_long().filter(|long| !arg.is_hide_set() && !["help", "version"].contains(long))?;
    Some(name_of(long))
}

fn name_of(long: &str) -> String {
    format!("{PREFIX}{}", long.to_uppercase().replace('-', "_"))
}
