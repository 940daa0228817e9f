//! Addresses: those that a process of this machine will listen on, and those of coordinators that it will connect to.
//!
//! Not here: questions about health (`health`), and names (`names`).

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use convoy_common::address::Address;
use convoy_net::listening::Listening;
use convoy_net::secrets::Secrets;
use convoy_net::tls::{Role, Tls};

use crate::finding::{Finding, Verdict};
use crate::health::{Asked, Unanswered, ask, refusal};
use crate::names::{SHOWN, addresses_of, listed, names_of};

const SUBJECT: &str = "coordinator";
/// A coordinator must answer within this.
const WITHIN: Duration = Duration::from_secs(5);
/// Clocks that differ by more than this, in seconds, make times of logs hard to compare.
const CLOCKS_DIFFER: i64 = 5;

/// Whether a process can listen on an address that `flag` gives. It does, as long as the second value exists, so that no two flags can give the
/// same address.
pub async fn listens(flag: &str, address: &Address, tls: Option<&Tls>) -> (Finding, Option<Listening>) {
    let listening = match Listening::open(address).await {
        Ok(listening) => listening,
        Err(error) if error.kind() == ErrorKind::AddrInUse => return (in_use(flag, address, tls).await, None),
        Err(error) => return (cannot_listen(flag, address, &error), None),
    };
    if let Address::Unix(path) = address {
        // The file of the socket. If it stays, the next process removes it.
        let _ = std::fs::remove_file(path);
    }
    (can_listen(flag, address), Some(listening))
}

fn can_listen(flag: &str, address: &Address) -> Finding {
    let found = match address {
        Address::Tcp(host) if host.ends_with(":0") => format!("this process can listen on {address}, a free port"),
        _ => format!("this process can listen on {address}"),
    };
    let is_for_others = matches!(flag, "--listen" | "--exchange-listen");
    match address {
        Address::Tcp(host) if is_for_others && address.is_local() => {
            let all = if host.starts_with('[') { "[::]" } else { "0.0.0.0" };
            let advice = format!("other machines cannot connect to it; for all of them, use {all} and the same port");
            Finding::warning(flag, found, advice)
        }
        _ => Finding::ok(flag, found),
    }
}

/// An address at which another process listens. A worker may be running on a machine that is checked.
pub async fn in_use(flag: &str, address: &Address, tls: Option<&Tls>) -> Finding {
    match ask(address, tls, WITHIN).await {
        Ok(Asked { role: Role::Worker, .. }) => Finding::warning(
            flag,
            format!("a worker of Convoy listens on {address} already"),
            "if it is the one of this machine, all is well; another one needs another address",
        ),
        Ok(Asked { role: Role::Coordinator, .. }) => Finding::wrong(
            flag,
            format!("the coordinator of another job listens on {address}: the address is in use"),
            "wait until that job has ended, or give another port",
        ),
        Err(_) => Finding::wrong(
            flag,
            format!("cannot listen on {address}: the address is in use"),
            match address {
                Address::Tcp(_) => "another process listens there; end it (`ss -lntp` names it), or give another port",
                Address::Unix(_) => "another process listens there; end it (`ss -lxp` names it), or give another path",
            },
        ),
    }
}

fn cannot_listen(flag: &str, address: &Address, error: &io::Error) -> Finding {
    let advice = match error.kind() {
        ErrorKind::AddrNotAvailable => {
            "it is no address of this machine (`ip address` lists them); 0.0.0.0 means all of them"
        }
        ErrorKind::PermissionDenied => "use a port above 1023, or for unix:PATH a folder that this user can write",
        ErrorKind::NotFound => "the folder of unix:PATH must exist",
        _ => "give another address",
    };
    Finding::wrong(flag, format!("cannot listen on {address}: {error}"), advice)
}

/// Whether a coordinator can be reached at an address: its name, and the process there.
pub async fn reaches(address: &Address, secrets: &Secrets) -> Vec<Finding> {
    let Address::Tcp(text) = address else { return vec![asked(address, secrets).await] };
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = match addresses_of(host, port.parse().unwrap_or(0)).await {
        Ok(found) => found,
        Err(why) => {
            let advice = "check its spelling, and add it to DNS or to /etc/hosts, or give an address";
            return vec![Finding::wrong("name", format!("{host} can't be looked up: {why}"), advice)];
        }
    };
    let mut findings = Vec::new();
    if host.parse::<IpAddr>().is_err() {
        findings.push(Finding::ok("name", format!("{host} is {}", listed(&found))));
    }
    findings.extend(names_of(&found).await);
    for place in distinct(found).into_iter().take(SHOWN) {
        findings.push(asked(&Address::Tcp(place.to_string()), secrets).await);
    }
    findings
}

fn distinct(mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    found.sort();
    found.dedup();
    found
}

async fn asked(address: &Address, secrets: &Secrets) -> Finding {
    let tls = secrets.tls.as_ref();
    let found = judged(address, ask(address, tls, WITHIN).await, tls.is_some());
    if found.verdict == Verdict::Wrong {
        return found;
    }
    match refusal(address, secrets, WITHIN).await {
        Some(why) => Finding::wrong(
            SUBJECT,
            format!("the coordinator at {address} would refuse a worker with these secrets: {why}"),
            "give both processes the same --token-file",
        ),
        None => found,
    }
}

/// What to make of an answer of the process at an address that should be a coordinator's.
fn judged(address: &Address, asked: Result<Asked, Unanswered>, has_tls: bool) -> Finding {
    let asked = match asked {
        Ok(asked) => asked,
        Err(unanswered) => return Finding::wrong(SUBJECT, unanswered.to_string(), advice(&unanswered)),
    };
    let round_trip = asked.round_trip.as_secs_f64() * 1e3;
    let doing = match (asked.role, asked.is_alive, asked.is_ready) {
        (_, false, _) => ", and hangs",
        (Role::Coordinator, true, false) => ", and waits for workers",
        (Role::Coordinator, true, true) => ", and has its workers",
        (Role::Worker, true, _) => "",
    };
    let ahead = asked.clock_ahead.filter(|ahead| ahead.abs() > CLOCKS_DIFFER);
    let clock = ahead.map(|ahead| {
        format!(
            "; its clock is {} s {} that of this machine",
            ahead.abs(),
            if ahead > 0 { "ahead of" } else { "behind" }
        )
    });
    let found =
        format!("the {} at {address} answers in {round_trip:.1} ms{doing}{}", asked.role, clock.unwrap_or_default());
    match (asked.role, ahead) {
        (Role::Worker, _) => {
            Finding::wrong(SUBJECT, found, "--join must name a coordinator's --listen, not a worker's --health")
        }
        (Role::Coordinator, _) if !asked.is_alive => {
            Finding::wrong(SUBJECT, found, "end that process, and start its job again with --resume")
        }
        (Role::Coordinator, Some(_)) => {
            let why = if has_tls {
                "certificates are valid for a time, and logs are hard to compare"
            } else {
                "logs are hard to compare"
            };
            Finding::warning(SUBJECT, found, format!("set both clocks, for example with a time service (NTP): {why}"))
        }
        (Role::Coordinator, None) => Finding::ok(SUBJECT, found),
    }
}

fn advice(unanswered: &Unanswered) -> &'static str {
    match unanswered {
        Unanswered::Name { .. } => "check its spelling, and add it to DNS or to /etc/hosts, or give an address",
        Unanswered::Nobody { .. } => {
            "start the coordinator, or `convoy doctor --listen` on its machine, and repeat this check"
        }
        Unanswered::Untrusted { .. } => "docs/SECURITY.md explains TLS",
        Unanswered::Silent { .. } => {
            "check the address, and that no firewall between the machines drops connections to its port"
        }
        Unanswered::Stranger { .. } => "another program listens there; check the port",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        "10.0.0.7:7878".parse().unwrap()
    }

    #[test]
    fn only_a_coordinator_that_is_alive_and_has_the_same_time_is_right() {
        let well = Asked {
            role: Role::Coordinator,
            is_alive: true,
            is_ready: false,
            round_trip: Duration::from_micros(300),
            clock_ahead: Some(-CLOCKS_DIFFER),
        };
        let verdict = |asked| judged(&address(), Ok(asked), true).verdict;
        assert_eq!(
            judged(&address(), Ok(well), true).found,
            "the coordinator at 10.0.0.7:7878 answers in 0.3 ms, and waits for workers"
        );
        assert_eq!(verdict(well), Verdict::Ok);
        assert_eq!(verdict(Asked { clock_ahead: None, ..well }), Verdict::Ok);
        assert_eq!(verdict(Asked { clock_ahead: Some(60), ..well }), Verdict::Warning);
        assert_eq!(verdict(Asked { is_alive: false, ..well }), Verdict::Wrong);
        assert_eq!(verdict(Asked { role: Role::Worker, ..well }), Verdict::Wrong);
        let silent = Unanswered::Silent { address: address(), within: WITHIN };
        let silent = judged(&address(), Err(silent), false);
        assert!(silent.verdict == Verdict::Wrong && silent.advice.unwrap().contains("firewall"));
    }
}
