//! Names of machines: which addresses they have, and which names these addresses have.
//!
//! Not here: who listens at an address (`addresses`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

use crate::finding::Finding;

/// The system's own limit is far longer when no DNS server answers.
const WITHIN: Duration = Duration::from_secs(5);
/// The most addresses of a name that are looked at.
pub(crate) const SHOWN: usize = 4;
const SUBJECT: &str = "name";

/// The addresses of a name, or why there are none.
pub(crate) async fn addresses_of(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let looked_up = timeout(WITHIN, tokio::net::lookup_host((host, port))).await;
    let found: Vec<_> = looked_up.map_err(|_| late())?.map_err(|error| error.to_string())?.collect();
    if found.is_empty() { Err("it has no address".to_owned()) } else { Ok(found) }
}

/// The name of an address, or why there is none.
async fn name_of(address: IpAddr) -> Result<String, String> {
    let looked_up = tokio::task::spawn_blocking(move || dns_lookup::lookup_addr(&address));
    let found = timeout(WITHIN, looked_up).await.map_err(|_| late())?.map_err(|error| error.to_string())?;
    // Without a name, the library gives the address.
    found.map_err(|error| error.to_string()).and_then(|name| match name.parse::<IpAddr>() {
        Ok(_) => Err("it has no name".to_owned()),
        Err(_) => Ok(name),
    })
}

fn late() -> String {
    format!("no answer within {WITHIN:?}; the DNS server can't be reached")
}

/// The name of this machine, by which the coordinator tells people to connect to it.
pub async fn own() -> Vec<Finding> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    match addresses_of(&name, 0).await {
        Err(why) => vec![Finding::warning(
            SUBJECT,
            format!("{name}, the name of this machine, can't be looked up here: {why}"),
            "give workers an address of this machine, or add its name to DNS or to /etc/hosts",
        )],
        Ok(found) => {
            let is_for_itself = found.iter().all(|address| address.ip().is_loopback());
            let what = format!("{name}, the name of this machine, is {}", listed(&found));
            let own = if is_for_itself {
                let advice =
                    "other machines must find another address for it; check this there, or give workers an address";
                Finding::warning(SUBJECT, what, advice)
            } else {
                Finding::ok(SUBJECT, what)
            };
            std::iter::once(own).chain(names_of(&found).await).collect()
        }
    }
}

/// The names of addresses, and whether they lead back. Convoy does not need them; people read them in logs of other programs.
pub(crate) async fn names_of(addresses: &[SocketAddr]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let of_others = addresses.iter().map(SocketAddr::ip).filter(|address| !address.is_loopback());
    for address in of_others.take(SHOWN) {
        findings.push(match name_of(address).await {
            Ok(name) => back(address, &name, addresses_of(&name, 0).await),
            Err(why) => Finding::ok(SUBJECT, format!("{address} has no name ({why}), and needs none")),
        });
    }
    findings
}

/// What to make of the name of an address, which has addresses of its own.
fn back(address: IpAddr, name: &str, found: Result<Vec<SocketAddr>, String>) -> Finding {
    let advice = "correct the name in DNS or in /etc/hosts; jobs run nevertheless";
    match found {
        Ok(found) if found.iter().any(|found| found.ip() == address) => {
            Finding::ok(SUBJECT, format!("{address} is {name}, in both directions"))
        }
        Ok(found) => {
            Finding::warning(SUBJECT, format!("{address} is {name}, but {name} is {}", listed(&found)), advice)
        }
        Err(why) => {
            Finding::warning(SUBJECT, format!("{address} is {name}, but {name} can't be looked up: {why}"), advice)
        }
    }
}

/// Addresses for a person, without ports.
pub(crate) fn listed(addresses: &[SocketAddr]) -> String {
    let mut hosts: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
    hosts.dedup();
    let more = hosts.len().saturating_sub(SHOWN);
    hosts.truncate(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    hosts.join(", ") + &rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Verdict;

    #[test]
    fn a_name_leads_back_or_is_a_warning() {
        let address: IpAddr = [10, 0, 0, 7].into();
        let found = |text: &str| Ok(vec![SocketAddr::new(text.parse().unwrap(), 0)]);
        assert_eq!(back(address, "w1", found("10.0.0.7")).verdict, Verdict::Ok);
        let elsewhere = back(address, "w1", found("10.0.0.8"));
        assert!(elsewhere.verdict == Verdict::Warning && elsewhere.found.contains("10.0.0.8"), "{elsewhere:?}");
        assert_eq!(back(address, "w1", Err("?".to_owned())).verdict, Verdict::Warning);
    }

    #[test]
    fn few_addresses_are_listed() {
        let addresses: Vec<_> = (1..=6).map(|last| SocketAddr::from(([10, 0, 0, last], 80))).collect();
        assert_eq!(listed(&addresses), "10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4 and 2 more");
    }
}
