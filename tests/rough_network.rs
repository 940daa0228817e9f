//! Jobs over a network that a seed makes rough: bytes come late and in pieces of any size, one connection overtakes another, a direction
//! stops for seconds, connections are cut at any byte. Whatever happens, a job ends, each of its steps counts once, and its weights are those
//! of a job without a network, to the bit.
//!
//! The seed decides what happens to the bytes of each connection, not the moment at which a process sends them. So a seed does not repeat a
//! run exactly, but what it does to the connections.
//!
//! Not here: processes that die (`recovery`, `chaos`), and bytes that change on the way (`strangers`, `peers`).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::{Process, Start as _, end, finish, free_address, hash, listening_at, losses, record, said, succeed};
use tempfile::TempDir;

const JOB: &str =
    "train --data bundled --train-images 128 --batch 16 --epochs 2 --schedule constant --snapshot-every 2";
const STEPS: u64 = 16;
/// Seeds, unless CONVOY_SEEDS names others, such as 0..2000.
const SEEDS: Range<u64> = 0..24;
/// Jobs at once. They mostly wait.
const AT_ONCE: usize = 8;
/// The most connections of a job that are cut, and the most that are stopped, so that it ends.
const CUTS: u64 = 4;
const STOPS: u64 = 3;

/// Random numbers of one direction of one connection (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What has happened to the connections of a job.
#[derive(Default)]
struct Weather {
    cuts: AtomicU64,
    stops: AtomicU64,
    late: AtomicU64,
}

/// Whether one more is allowed of what `count` counts.
fn one_more(count: &AtomicU64, most: u64) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < most).then_some(count + 1)).is_ok()
}

/// What happens to a direction of a connection after some bytes.
#[derive(Clone, Copy)]
enum Happening {
    Cut,
    Stop(Duration),
}

/// What happens next, and after how many bytes. The first kilobytes hold the greeting.
fn happening(random: &mut Random) -> (u64, Happening) {
    let scale = [1_000, 50_000, 1_000_000][random.below(3) as usize];
    let after = random.below(scale);
    let what = match random.below(3) {
        0 => Happening::Stop(Duration::from_millis(match random.below(3) {
            // Longer than the five seconds after which a silent worker is given up, or about as long.
            0 => 4_000 + random.below(4_000),
            _ => random.below(500),
        })),
        _ => Happening::Cut,
    };
    (after, what)
}

/// Carries the bytes of one direction.
fn carry(mut from: TcpStream, mut to: TcpStream, mut random: Random, weather: &Weather) {
    let (mut after, mut what) = happening(&mut random);
    let is_late = random.below(2) == 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let room = 1 + random.below(buffer.len() as u64) as usize;
        let Ok(count @ 1..) = from.read(&mut buffer[..room]) else { break };
        let before = (count as u64).min(after) as usize;
        if to.write_all(&buffer[..before]).is_err() {
            break;
        }
        after -= before as u64;
        if before < count {
            match what {
                Happening::Cut if one_more(&weather.cuts, CUTS) => break,
                Happening::Stop(lasts) if one_more(&weather.stops, STOPS) => std::thread::sleep(lasts),
                _ => {}
            }
            (after, what) = happening(&mut random);
            after = after.max(1 << 10);
            if to.write_all(&buffer[before..count]).is_err() {
                break;
            }
        }
        if is_late && random.below(4) == 0 {
            weather.late.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(random.below(10_000)));
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// An address that leads to `address` through the weather of a seed, as long as it exists.
struct Way {
    here: String,
    is_over: Arc<AtomicBool>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // The thread that accepts connections looks when the next one comes.
        drop(TcpStream::connect(&self.here));
    }
}

fn way_to(address: &str, seed: u64, weather: &Arc<Weather>) -> Way {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let way = Way { here: listener.local_addr().unwrap().to_string(), is_over: Arc::default() };
    let (address, weather, is_over) = (address.to_owned(), weather.clone(), way.is_over.clone());
    std::thread::spawn(move || {
        for (number, near) in (0..).zip(listener.incoming().flatten()) {
            if is_over.load(Ordering::Relaxed) {
                return;
            }
            let Ok(far) = TcpStream::connect(&address) else { continue };
            let [near, far] = [near, far].map(|stream| {
                stream.set_nodelay(true).unwrap();
                (stream.try_clone().unwrap(), stream)
            });
            let of = |direction| Random(seed.wrapping_mul(1 << 20) + 2 * number + direction);
            for (from, to, random) in [(near.0, far.0, of(0)), (far.1, near.1, of(1))] {
                let weather = weather.clone();
                std::thread::spawn(move || carry(from, to, random, &weather));
            }
        }
    });
    way
}

/// What a job has been through.
struct Survived {
    incidents: usize,
    cuts: u64,
    stops: u64,
    late: u64,
}

/// A job in the weather of a seed. Fails unless it ends as it must.
fn job(seed: u64, folder: &Path, expected: &str) -> Survived {
    let mut random = Random(seed);
    let (count, exchange) = (1 + random.below(4), ["auto", "relay"][random.below(2) as usize]);
    let (out, weather) = (folder.join(seed.to_string()), Arc::new(Weather::default()));
    let mut command = support::convoy();
    command.args(JOB.split_whitespace()).args(["--workers", &count.to_string(), "--exchange", exchange]);
    command.args(["--patience", "1", "--listen", &free_address(), "--out"]).arg(&out);
    let mut coordinator = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    let address = listening_at(&mut coordinator);
    let ways: Vec<_> = (0..count).map(|number| way_to(&address, seed * 8 + number, &weather)).collect();
    let worker = |way: &Way| -> Process {
        let mut command = support::convoy();
        command.args(["worker", "--threads", "1", "--join", &way.here]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).start()
    };
    let workers: Vec<_> = ways.iter().map(worker).collect();
    let output = finish(coordinator);
    let text = format!("seed {seed}, {count} workers, {exchange}: {}{}", said(&output), end(workers));
    assert!(output.status.success() && !text.contains("panicked"), "{text}");
    assert_eq!(hash(&out), expected, "{text}");
    let steps: Vec<_> = losses(&out).into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "each step counts once: {text}");
    let incidents = record(&out)["incidents"].as_array().map_or(0, Vec::len);
    std::fs::remove_dir_all(out).unwrap();
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Survived { incidents, cuts: of(&weather.cuts), stops: of(&weather.stops), late: of(&weather.late) }
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("CONVOY_SEEDS") else { return SEEDS };
    let parsed = text.split_once("..").and_then(|(start, end)| Some(start.parse().ok()?..end.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("CONVOY_SEEDS={text}: must be such as 0..2000"))
}

#[test]
fn jobs_end_in_the_same_bits_whatever_the_network_does() {
    let folder = TempDir::new().unwrap();
    let alone = folder.path().join("alone");
    succeed(JOB, &[("--out", &alone)]);
    let expected = hash(&alone);
    let (seeds, next) = (seeds(), AtomicU64::new(seeds().start));
    let survived: Vec<Survived> = std::thread::scope(|scope| {
        let work = || {
            let mut survived = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if !seeds.contains(&seed) {
                    return survived;
                }
                survived.push(job(seed, folder.path(), &expected));
            }
        };
        let lanes: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        lanes.into_iter().flat_map(|lane| lane.join().unwrap()).collect()
    });
    let sum = |of: fn(&Survived) -> u64| survived.iter().map(of).sum::<u64>();
    let [incidents, cuts, stops, late] =
        [sum(|s| s.incidents as u64), sum(|s| s.cuts), sum(|s| s.stops), sum(|s| s.late)];
    let jobs = survived.len();
    let figures = format!("{jobs} jobs: {cuts} connections cut, {stops} stopped, {late} delays; {incidents} faults\n");
    std::io::stderr().write_all(figures.as_bytes()).unwrap();
    // The weather was rough, and jobs noticed. A single seed may be calm.
    let is_rough = cuts > 0 && stops > 0 && late > 0 && incidents > 0;
    assert!(is_rough || seeds != SEEDS, "{cuts} {stops} {late} {incidents}");
}
