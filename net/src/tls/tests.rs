//! Both ends of a connection, in right and in wrong set-ups, and what each of them says.

use std::time::{Duration, Instant};

use convoy_common::address::Address;
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::Socket;
use crate::authority::{Authority, Issued, params_of_process};
use crate::dial::{DialError, dial};
use crate::listening::{Listening, handshake, part};
use crate::reception::{Reception, Stay};

/// An identity that nobody has checked.
fn unchecked(issued: &Issued, trusted: &[&Issued]) -> Tls {
    let mut roots = RootCertStore::empty();
    for authority in trusted {
        roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap()).unwrap();
    }
    let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    Verifiers::new(roots).unwrap().identity(chain, key).unwrap()
}

/// How a connection ended, at the client and at the server.
type Ended = (Option<Fault>, Option<Fault>);

/// Connects a client that expects a coordinator to a server of `serves`, and sends a byte in both directions.
async fn meet(client: Option<&Tls>, server: Option<&Tls>, serves: Protocol) -> Ended {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    let acceptor = server.map(|tls| tls.acceptor(serves));
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let Some(acceptor) = acceptor else {
            // As HTTP/2 begins: an empty frame of settings.
            let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
            part(stream).await;
            return None;
        };
        match handshake(acceptor, stream).await {
            Ok(mut socket) => {
                let byte = socket.read_u8().await.unwrap();
                socket.write_u8(byte).await.unwrap();
                socket.flush().await.unwrap();
                None
            }
            Err((fault, stream)) => {
                part(stream).await;
                fault
            }
        }
    });
    let at_client = match dial(&address, &[Role::Coordinator], Protocol::Grpc, client).await {
        Err(DialError::Tls(fault)) => Some(fault),
        Err(DialError::Network(error)) => panic!("the network failed: {error}"),
        Ok((mut socket, fate)) => {
            let _ = socket.write_all(&[7; 100]).await;
            let _ = socket.flush().await;
            match socket.read_u8().await {
                Ok(byte) => assert_eq!(byte, if server.is_some() { 7 } else { 0 }),
                Err(_) => assert!(fate.fault().is_some(), "a connection that fails says why"),
            }
            fate.fault().cloned()
        }
    };
    (at_client, serving.await.unwrap())
}

fn said(fault: Option<Fault>) -> String {
    fault.map_or("nothing".to_owned(), |fault| fault.to_string())
}

#[tokio::test]
async fn each_end_says_what_is_wrong() {
    let ((authority, ca), (foreign, other_ca)) = (Authority::new().unwrap(), Authority::new().unwrap());
    let issued = |role| authority.issue(role, "test", 1).unwrap();
    let [coordinator, worker] = [Role::Coordinator, Role::Worker].map(issued);
    let [server, client] = [&coordinator, &worker].map(|issued| unchecked(issued, &[&ca]));
    let expired = |role| {
        let mut params = params_of_process(role, "test", -3).unwrap();
        params.not_before -= time::Duration::days(9);
        unchecked(&authority.sign(&params).unwrap(), &[&ca])
    };
    let early = |role| {
        let mut params = params_of_process(role, "test", 9).unwrap();
        params.not_before += time::Duration::days(2);
        unchecked(&authority.sign(&params).unwrap(), &[&ca])
    };
    let strangers = |role| unchecked(&foreign.issue(role, "test", 1).unwrap(), &[&ca, &other_ca]);
    let one_way = |purpose| {
        let mut params = params_of_process(Role::Coordinator, "test", 1).unwrap();
        params.extended_key_usages = vec![purpose];
        unchecked(&authority.sign(&params).unwrap(), &[&ca])
    };
    let anonymous = Tls {
        of_servers: client.of_servers.clone(),
        client: ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_webpki_verifier(Verifiers::new(roots_of(&ca)).unwrap().of_servers)
            .with_no_client_auth(),
        server: server.server.clone(),
        of_clients: client.of_clients.clone(),
        chain: Vec::new(),
    };
    let (worker_expired, early, stranger) = (expired(Role::Worker), early(Role::Worker), strangers(Role::Worker));
    let (mute, deaf) = (one_way(ExtendedKeyUsagePurpose::ServerAuth), one_way(ExtendedKeyUsagePurpose::ClientAuth));
    let (server_expired, impostor) = (expired(Role::Coordinator), strangers(Role::Coordinator));
    let (c, s) = (Some(&client), Some(&server));
    let cases = [
        ("a right set-up", c, s, "nothing", "nothing"),
        ("no TLS at all", None, None, "nothing", "nothing"),
        (
            "a plain client",
            None,
            s,
            "it requires TLS; give this process --tls-cert",
            "it does not use TLS; start it with",
        ),
        ("a plain server", c, None, "it does not use TLS; start it with --tls-cert", "nothing"),
        (
            "a client without a certificate",
            Some(&anonymous),
            s,
            "it requires a certificate",
            "it showed no certificate",
        ),
        (
            "a client of another CA",
            Some(&stranger),
            s,
            "no CA in the other process's --tls-ca",
            "was not issued by a CA in",
        ),
        (
            "a server of another CA",
            c,
            Some(&impostor),
            "was not issued by a CA in",
            "no CA in the other process's --tls-ca",
        ),
        (
            "a client that has expired",
            Some(&worker_expired),
            s,
            "has expired or is not valid yet",
            "expired 3 days ago; renew",
        ),
        ("a client of the future", Some(&early), s, "has expired or is not valid yet", "becomes valid only in 1 day;"),
        (
            "a server that has expired",
            c,
            Some(&server_expired),
            "expired 3 days ago",
            "has expired or is not valid yet",
        ),
        (
            "a worker that poses as a coordinator",
            c,
            Some(&client),
            "its certificate is for worker.convoy.internal; it must have the DNS name coordinator.convoy.internal",
            "does not have the DNS name that the other process expects",
        ),
        (
            "a client that may only serve",
            Some(&mute),
            s,
            "must allow the authentication of servers and of",
            "does not allow this use",
        ),
        (
            "a server that may only connect",
            c,
            Some(&deaf),
            "does not allow this use",
            "must allow the authentication of",
        ),
    ];
    for (what, client, server, at_client, at_server) in cases {
        let (client, server) = meet(client, server, Protocol::Grpc).await;
        let (client, server) = (said(client), said(server));
        assert!(client.contains(at_client), "{what}, at the client: {client}");
        assert!(server.contains(at_server), "{what}, at the server: {server}");
    }
    let (client, _) = meet(c, s, Protocol::Http).await;
    assert!(said(client.clone()).contains("the address serves something else"), "{}", said(client));
}

fn roots_of(ca: &Issued) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.certificate.as_bytes()).unwrap()).unwrap();
    roots
}

#[test]
fn wrong_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ((authority, ca), (_, other)) = (Authority::new().unwrap(), Authority::new().unwrap());
    let issued = authority.issue(Role::Worker, "test", 1).unwrap();
    let mut params = params_of_process(Role::Worker, "test", -1).unwrap();
    params.not_before -= time::Duration::days(9);
    let expired = authority.sign(&params).unwrap();
    let good = TlsFiles {
        certificate: place("good.pem", &issued.certificate),
        key: place("good-key.pem", &issued.key),
        authorities: place("ca.pem", &ca.certificate),
    };
    assert!(Tls::load(&good, Some(Role::Worker)).is_ok() && Tls::load(&good, None).is_ok());
    // Several CAs, such as the old one and the new one, and text around them.
    let both = place("both.pem", &format!("# old\n{}\n# new\n{}", other.certificate, ca.certificate));
    assert!(Tls::load(&TlsFiles { authorities: both, ..good.clone() }, Some(Role::Worker)).is_ok());
    let certificate = |name: &str, text: &str| TlsFiles { certificate: place(name, text), ..good.clone() };
    let key = |name: &str, text: &str| TlsFiles { key: place(name, text), ..good.clone() };
    let authorities = |name: &str, text: &str| TlsFiles { authorities: place(name, text), ..good.clone() };
    let expired =
        TlsFiles { key: place("expired-key.pem", &expired.key), ..certificate("expired.pem", &expired.certificate) };
    let torn = &issued.certificate[..issued.certificate.len() / 2];
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (files, role, why) in [
        (
            good.clone(),
            Role::Coordinator,
            "good.pem: this certificate is for worker.convoy.internal; the certificate of this process",
        ),
        (expired, Role::Worker, "expired.pem: this certificate expired 1 day ago"),
        (
            authorities("other.pem", &other.certificate),
            Role::Worker,
            "good.pem: no CA in --tls-ca issued this certificate",
        ),
        (
            key("other-key.pem", &authority.issue(Role::Worker, "b", 1).unwrap().key),
            Role::Worker,
            "its key is not the one in --tls-key",
        ),
        (certificate("empty.pem", ""), Role::Worker, "empty.pem: it has no certificate in PEM"),
        (certificate("key.pem", &issued.key), Role::Worker, "key.pem: it has no certificate in PEM"),
        (certificate("torn.pem", torn), Role::Worker, "torn.pem: it is damaged: a block has no line -----END"),
        (
            certificate("garbage.pem", garbage),
            Role::Worker,
            "garbage.pem: this certificate is wrong: it is not an X.509 certificate",
        ),
        (key("empty-key.pem", "\n"), Role::Worker, "--tls-key"),
        (authorities("garbage-ca.pem", garbage), Role::Worker, "--tls-ca"),
        (certificate("long.pem", &"x".repeat(1 << 21)), Role::Worker, "it is longer than 1048576 bytes"),
        (TlsFiles { key: "/nowhere".into(), ..good.clone() }, Role::Worker, "--tls-key /nowhere: No such file"),
        (TlsFiles { authorities: folder.path().into(), ..good.clone() }, Role::Worker, "Is a directory"),
    ] {
        let error = Tls::load(&files, Some(role)).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains("[45"), "expected \"{why}\": {error}");
    }
}

#[test]
fn a_role_has_a_name_that_certificates_can_have() {
    for role in [Role::Coordinator, Role::Worker] {
        assert_eq!(role.server_name().unwrap().to_str(), role.name());
    }
}

#[test]
fn an_authority_is_known_again_by_its_files() {
    let ((_, ca), (_, other)) = (Authority::new().unwrap(), Authority::new().unwrap());
    let known = Authority::of(ca.certificate.as_bytes(), &ca.key).unwrap();
    let issued = known.issue(Role::Coordinator, "later", 1).unwrap();
    assert!(is_issued_by(ca.certificate.as_bytes(), issued.certificate.as_bytes()));
    assert!(!is_issued_by(other.certificate.as_bytes(), issued.certificate.as_bytes()));
    assert!(Authority::of(ca.certificate.as_bytes(), "no key").is_err());
    assert!(Authority::of(other.certificate.as_bytes(), &ca.key).is_err(), "the certificate of another authority");
}

/// An address with TLS, and the identity of its clients.
async fn address() -> (Address, ReceiverStream<(Socket, Stay)>, Tls) {
    let (authority, ca) = Authority::new().unwrap();
    let [client, server] =
        [Role::Worker, Role::Coordinator].map(|role| unchecked(&authority.issue(role, "test", 1).unwrap(), &[&ca]));
    let listening = Listening::open(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = Address::Tcp(listening.address().to_owned());
    let reception = Reception::new("for tests", crate::reception::LIMITS);
    (address, listening.arrivals(reception, Protocol::Grpc, Some(&server)), client)
}

/// A handshake is over when it is over, however quiet the address is.
#[tokio::test]
async fn a_connection_is_handed_over_at_once() {
    let (address, mut arrivals, client) = address().await;
    let began = Instant::now();
    for _ in 0..20 {
        let dialled = dial(&address, &[Role::Coordinator], Protocol::Grpc, Some(&client)).await.unwrap();
        assert!(arrivals.next().await.is_some());
        drop(dialled);
    }
    assert!(began.elapsed() < Duration::from_secs(1), "20 connections took {:?}", began.elapsed());
}

/// Connections within a handshake end together with their address, and others as usual when their process is killed.
#[tokio::test]
async fn connections_end_with_their_address_and_with_their_process() {
    let (address, mut arrivals, client) = address().await;
    let (mut socket, _) = dial(&address, &[Role::Coordinator], Protocol::Grpc, Some(&client)).await.unwrap();
    let (served, _stay) = arrivals.next().await.unwrap();
    // Without the end of TLS, as if its process had been killed.
    drop(served);
    assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);

    let Address::Tcp(host) = &address else { panic!("not TCP") };
    let mut silent = tokio::net::TcpStream::connect(host).await.unwrap();
    silent.write_all(b"\x16\x03\x01").await.unwrap();
    drop(arrivals);
    let read = tokio::time::timeout(Duration::from_secs(5), silent.read(&mut [0])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "it stays open");
}
