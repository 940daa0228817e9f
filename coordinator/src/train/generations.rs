//! One generation after another: a crew is formed, and drives steps until the job has ended. After a fault the run goes back to the
//! last snapshot, and the next generation replays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use convoy_common::chain::chain;
use convoy_common::index::{PerWorker, WorkerIndex};
use convoy_common::wire::{Assignment, Generation, Peer};

use super::Run;
use super::drive::{Drive, Site};
use crate::cluster::formation::Gathered;
use crate::crew::Crew;
use crate::error::JobError;
use crate::fault::Fault;
use crate::incident::Underway;
use crate::links::{Transport, arranged};
use crate::observe::{Event, Observer, WorkerProcess};
use crate::recovery::Generations;
use crate::stop::Stop;
use crate::trace::file::About;
use crate::trace::otlp::Exporter;
use crate::trace::{Recording, Sampling};

impl Run {
    /// Drives one generation after another until the job has ended. Returns whether it was interrupted.
    pub(super) fn recover(
        &mut self,
        site: &mut Site,
        generations: &mut Generations,
        drive: &mut Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<bool, JobError> {
        let ended = self.recover_until_the_end(site, generations, drive, observer, stop);
        if let Err(error) = &ended
            && error.leaves_a_sound_snapshot()
            && drive.has_begun
        {
            self.save_snapshot(drive, observer);
        }
        // A job that has failed or was interrupted has not caught up, but the faults are on record.
        self.record.incidents.extend(drive.underway.drain(..).map(Underway::end));
        ended
    }

    fn recover_until_the_end(
        &mut self,
        site: &mut Site,
        generations: &mut Generations,
        drive: &mut Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<bool, JobError> {
        loop {
            let number = generations.begin();
            let fault = match self.generation(number, site, drive, observer, stop) {
                Ok(()) => return Ok(false),
                Err(Stop::InOrder) => return Ok(true),
                Err(Stop::Grows) => {
                    self.grow(site, drive, observer)?;
                    continue;
                }
                Err(Stop::Abrupt) if !drive.has_begun => return Err(JobError::Interrupted),
                Err(Stop::Abrupt) => return self.end_abruptly(drive, observer).map(|()| true),
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::Fault(fault) | Stop::Leaves(fault)) => fault,
            };
            if let Fault::Link { worker, peer, why, .. } = &fault {
                if self.running.transport == Transport::Direct && !drive.has_begun {
                    return Err(JobError::NoLink { why: chain(&fault) });
                }
                if !drive.has_begun {
                    let text =
                        format!("the coordinator relays what worker {worker} and worker {peer} send each other: {why}");
                    observer.on(Event::Notice { text });
                    continue;
                }
            }
            // A worker that can't take part in the job at all would fail again and again.
            if !drive.has_begun && matches!(fault, Fault::Failed { .. } | Fault::Ended { was_killed: false, .. }) {
                if site.cluster.is_whole() {
                    return Err(fault.into());
                }
                // Fewer workers than requested may have too little memory. The next generation waits for all.
                self.running.begins_with_fewer = false;
            }
            let seated = |worker| {
                let hello = site.cluster.member(worker).map(|member| &member.hello);
                hello.map(|hello| (hello.process_id, hello.host.clone()))
            };
            let (process_id, host) = fault.process().or_else(|| seated(fault.worker())).unzip();
            let peer = fault
                .peer()
                .and_then(|worker| seated(worker).map(|(process_id, host)| WorkerProcess { worker, process_id, host }));
            // What can't be relayed must have been wrong when it was sent.
            let can_be_relayed = self.running.transport != Transport::Direct;
            let both_stay = matches!(fault, Fault::Link { .. }) || (fault.is_of_a_link() && can_be_relayed);
            if !both_stay {
                site.cluster.give_up(fault.worker(), &chain(&fault));
            }
            // All that are about to stop have waited for the same checkpoint.
            while let Some((worker, _)) = site.cluster.leaving().filter(|_| matches!(fault, Fault::Left { .. })) {
                site.cluster.give_up(worker, &chain(&fault));
            }
            let fault = generations.ended(fault, self.progress.step)?;
            let (step, rewound_to) = (self.progress.step, self.snapshot.progress.step);
            site.recorder.incident(&chain(&fault));
            let (worker, what) = (fault.worker(), chain(&fault));
            observer.on(Event::Fault { worker, process_id, host, peer, what, step, rewound_to });
            let silence = std::mem::take(&mut drive.silence);
            drive.underway.push(Underway::begin(&fault, number, step, rewound_to, silence));
            self.rewind(site, drive);
            wait(generations.pause(), stop);
        }
    }

    /// Goes back to the snapshot.
    fn rewind(&mut self, site: &mut Site, drive: &mut Drive) {
        drive.reached = drive.reached.max(self.progress.step);
        self.progress = self.snapshot.progress;
        (drive.sent, drive.last_commit, drive.arriving) = (None, None, None);
        drive.prefetch.forget();
        site.recorder.rewind(self.progress.step);
    }

    /// Ends the job without the workers: with a checkpoint of the last snapshot.
    fn end_abruptly(&mut self, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), JobError> {
        self.progress = self.snapshot.progress;
        self.write_checkpoint(drive, observer)
    }

    /// One generation: all workers come, get their weights, and train until the job has ended or something happens.
    fn generation(
        &mut self,
        number: u64,
        site: &mut Site,
        drive: &mut Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(), Stop> {
        if drive.has_begun {
            self.replace(site, drive, observer, stop)?;
        } else {
            self.gather(number, site, drive, observer, stop)?;
        }
        drive.underway.iter_mut().for_each(Underway::replaced);
        let peers = self.link(site, drive, observer)?;
        if !drive.has_begun
            && !site.recorder.is_on()
            && let Err(error) = self.begin_recording(site)
        {
            let text = format!("this run has no trace: {}", chain(&error));
            observer.on(Event::Notice { text });
        }
        let generation = Generation { job: site.job, number };
        let assignment = Assignment { trace: site.recorder.is_on(), ..self.assignment(site.job) };
        let samples_max = self.largest_micro_batch();
        let (recorder, plan) = (&mut *site.recorder, self.plan.clone());
        let mut crew = Crew::new(site.cluster, recorder, observer, plan, samples_max, generation, stop);
        crew.rehearses_no_fence = self.running.rehearsal.no_fence;
        let ended = self.assign(&mut crew, &assignment, peers, drive).and_then(|()| self.drive(&mut crew, drive, stop));
        if let Err(Stop::Fault(fault) | Stop::Leaves(fault)) = &ended {
            drive.silence = crew.silence_of(fault.worker());
        }
        crew.leave_silence();
        drive.add_counted(&crew);
        ended
    }

    /// Arranges which workers are connected directly. Returns what each is told about its peers.
    ///
    /// # Errors
    /// When all must be, and a worker does not listen.
    fn link(
        &mut self,
        site: &mut Site,
        drive: &Drive,
        observer: &mut dyn Observer,
    ) -> Result<PerWorker<Vec<Peer>>, JobError> {
        let cluster = &*site.cluster;
        let address_of = |worker| cluster.member(worker)?.hello.exchange_address.clone();
        let is_direct = self.running.transport == Transport::Direct;
        let must_relay =
            |one, other| cluster.leads_elsewhere(one, other) || (!is_direct && cluster.must_relay(one, other));
        if self.running.transport == Transport::Direct
            && self.plan.workers > 1
            && let Some(worker) = self.plan.all_workers().find(|worker| address_of(*worker).is_none())
        {
            let host = cluster.member(worker).map_or("?", |member| &member.hello.host);
            return Err(JobError::NoLink {
                why: format!("worker {worker} on {host} does not listen for other workers"),
            });
        }
        let (links, peers) = arranged(&self.plan, self.running.transport, address_of, must_relay);
        if links != self.plan.links && site.recorder.is_on() {
            self.end_trace("the connections between workers have changed", site, drive, observer);
        }
        self.plan = Arc::new((*self.plan).clone().linked(links));
        self.record.planned_step_traffic = Some(self.step_traffic());
        Ok(peers)
    }

    /// Waits for the workers before the job begins.
    fn gather(
        &mut self,
        number: u64,
        site: &mut Site,
        drive: &Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(), Stop> {
        let cluster = &mut *site.cluster;
        cluster.restore_seats();
        if self.running.begins_with_fewer && self.running.listen.is_some() {
            // Workers that are there try to connect every two seconds.
            let patience = cluster.deadlines().given_up;
            let text = format!(
                "waiting for workers; {} s after the first one has connected, the run continues without those that are still missing",
                patience.as_secs()
            );
            observer.on(Event::Notice { text });
            let gathered = cluster.gather_any(patience, observer, stop)?;
            return self.settle(gathered, site, drive, observer);
        }
        let all = if number == 1 { cluster.gather(observer, stop)? } else { cluster.gather_again(observer, stop)? };
        if all { Ok(self.place(site, drive, observer)?) } else { Err(Stop::Abrupt) }
    }

    /// Gives every worker its towers and their state.
    fn assign(
        &mut self,
        crew: &mut Crew,
        assignment: &Assignment,
        peers: PerWorker<Vec<Peer>>,
        drive: &mut Drive,
    ) -> Result<(), Stop> {
        let state = self.stale.as_ref().filter(|_| drive.has_begun).unwrap_or(&self.snapshot.state);
        let began = Instant::now();
        crew.assign(assignment, peers, state, self.progress.step)?;
        // A snapshot moves as much, the other way.
        drive.pace.took(began.elapsed(), Instant::now());
        drive.underway.iter_mut().for_each(Underway::restored);
        self.record.workers = crew.records();
        if self.keeps_earlier_records {
            self.begin_records(crew.observer)?;
        } else {
            self.folder.write(&self.record)?;
        }
        if std::mem::replace(&mut drive.has_begun, true) {
            crew.observer.on(Event::Regrouped { workers: self.record.workers.clone() });
        } else {
            crew.observer.on(Event::Started(Box::new(self.started())));
        }
        self.catch_up(crew, drive)?;
        Ok(())
    }

    /// Records the faults after which the job has caught up.
    pub(super) fn catch_up(&mut self, crew: &mut Crew, drive: &mut Drive) -> Result<(), Stop> {
        let step = self.progress.step;
        let over = drive.underway.extract_if(.., |underway| underway.has_caught_up(step)).map(Underway::end);
        let over: Vec<_> = over.collect();
        if over.is_empty() {
            return Ok(());
        }
        self.record.incidents.extend(over.iter().cloned());
        over.into_iter().for_each(|incident| crew.observer.on(Event::Recovered(incident)));
        Ok(self.folder.write(&self.record)?)
    }

    /// Waits for other workers in the place of lost ones. If none come in time, the remaining ones take the towers over.
    fn replace(
        &mut self,
        site: &mut Site,
        drive: &Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(), Stop> {
        let mut gathered = site.cluster.refill(self.running.patience, observer, stop)?;
        if gathered == Gathered::Some && site.cluster.present() == 0 {
            site.cluster.restore_seats();
            let text = "no worker is left; the job waits up to ten minutes for one".to_owned();
            observer.on(Event::Notice { text });
            gathered = site.cluster.gather_any(self.running.patience, observer, stop)?;
        }
        self.settle(gathered, site, drive, observer)
    }

    /// Places the towers on the workers that have come.
    fn settle(
        &mut self,
        gathered: Gathered,
        site: &mut Site,
        drive: &Drive,
        observer: &mut dyn Observer,
    ) -> Result<(), Stop> {
        match gathered {
            Gathered::All => Ok(self.place(site, drive, observer)?),
            Gathered::Interrupted => Err(Stop::Abrupt),
            Gathered::Some => {
                let before = site.cluster.seats();
                site.cluster.close_ranks();
                let workers = site.cluster.seats();
                let text = format!(
                    "no other worker connected in time; the remaining workers ({workers} of {before}) hold all towers now"
                );
                observer.on(Event::Notice { text });
                Ok(self.place(site, drive, observer)?)
            }
        }
    }

    /// Spreads the towers over more workers, after a snapshot.
    fn grow(&mut self, site: &mut Site, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), JobError> {
        site.cluster.grow();
        let text = format!("another worker has joined; {} workers hold the towers now", site.cluster.seats());
        observer.on(Event::Notice { text });
        self.rewind(site, drive);
        self.place(site, drive, observer)
    }

    /// Places the towers on as many workers as there are seats.
    fn place(&mut self, site: &mut Site, drive: &Drive, observer: &mut dyn Observer) -> Result<(), JobError> {
        let workers = site.cluster.seats();
        if workers == self.plan.workers {
            return Ok(());
        }
        self.plan = Arc::new(self.running.plan_on(self.plan.network.clone(), self.job.slots, workers)?);
        self.record.running.workers = workers;
        self.record.running.replicas = self.plan.placement.replicas();
        self.record.workers.clear();
        self.record.planned_step_traffic = Some(self.step_traffic());
        self.end_trace("the number of workers has changed", site, drive, observer);
        Ok(())
    }

    /// Ends the trace, which is of one placement and of its links. Before the job has begun, another one begins in its place.
    fn end_trace(&self, why: &str, site: &mut Site, drive: &Drive, observer: &mut dyn Observer) {
        let is_on = site.recorder.is_on();
        let mut notices = site.recorder.finish();
        if is_on && drive.has_begun {
            let step = drive.reached.max(self.progress.step);
            notices.push(format!("the trace ends at step {step}: {why}"));
        } else if is_on {
            self.folder.remove_trace();
        }
        notices.into_iter().for_each(|text| observer.on(Event::Notice { text }));
    }

    /// Starts the recording, unless tracing is off.
    fn begin_recording(&self, site: &mut Site) -> Result<(), JobError> {
        let sampling = self.running.trace.clone();
        if sampling == Sampling::Off {
            return Ok(());
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let epoch = since_epoch.saturating_sub(site.cluster.clock().now());
        let members = WorkerIndex::all(site.cluster.seats()).filter_map(|worker| site.cluster.member(worker));
        let hosts = members.map(|member| member.hello.host.clone()).collect();
        let about = About::new(epoch, self.job.model.clone(), &self.plan, hosts, self.step_images());
        let steps = (self.progress.step + 1, self.last_step);
        let path = self.folder.trace()?;
        // The placement may have changed before the first step, which ended an earlier recording and its exporter.
        let exporter = self.running.otlp.as_deref().map(Exporter::start).transpose().map_err(JobError::Otlp)?;
        let recording = Recording::begin(&path, sampling, steps, about, self.plan.network.clone(), exporter);
        site.recorder.begin(recording.map_err(|source| JobError::Write { path, source })?);
        Ok(())
    }
}

/// Waits, unless a stop is requested.
fn wait(pause: Duration, stop: &AtomicBool) {
    let began = Instant::now();
    while began.elapsed() < pause && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
    }
}
