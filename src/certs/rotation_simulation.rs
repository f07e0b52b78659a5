//! Simulates years of CA rotation in a cluster with a controller, some replicas, an API server and faults. After each
//! step, the test verifies each replica's certificate with the live bundle.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use time::{Duration as Span, OffsetDateTime, macros::datetime};
use tokio::time::Instant;

use super::{
    Leaf,
    authority::{
        BUNDLE_PROPAGATION_TIME, CaCertificate, CaSecret, RotationReason, RotationStep, SecretError, next_step,
    },
    bundle_trust::BundleTrust,
    leaf_signer::{LeafSigner, SteadyClock},
};

const NAME: &str = "spillway-webhook.spillway-system.svc";
const BROKEN: &str = "?";
const START: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

/// A linear congruential generator (Knuth's MMIX), so that a failing seed can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn hours(&mut self, from: i64, to: i64) -> Span {
        Span::hours(from + i64::try_from(self.below(u64::try_from(to - from).unwrap())).unwrap())
    }
}

/// The last observed bundle, which may be absent.
#[derive(PartialEq)]
enum ObservedBundle {
    Never,
    Bundle(Option<String>),
}

type Secret = Option<BTreeMap<String, String>>;

/// The objects of the API server.
struct Cluster {
    secret: Secret,
    /// The bundle of both webhooks. `None` without a configuration.
    bundle: Option<String>,
    /// Bundles of the last seconds, which another API server may still use.
    recent: Vec<(OffsetDateTime, Option<String>)>,
    /// `true` after a user changed the bundle, until the controller restores it.
    is_tampered_with: bool,
}

impl Cluster {
    fn stored(&self) -> Result<CaSecret, SecretError> {
        Ok(CaSecret::read(self.secret.as_ref().ok_or(SecretError::Missing)?)?)
    }

    fn publish(&mut self, bundle: Option<String>, now: OffsetDateTime) {
        self.recent.push((now, self.bundle.take()));
        self.bundle = bundle;
    }

    fn bundles(&self) -> Vec<&[u8]> {
        self.bundle.iter().flat_map(|bundle| [bundle.as_bytes(), bundle.as_bytes()]).collect()
    }
}

struct SimulatedReplica {
    signer: LeafSigner,
    /// The last observed Secret.
    last_secret: Secret,
    /// The last observed bundle.
    observed: ObservedBundle,
    started_at: OffsetDateTime,
    /// The replica observes no change until then.
    disconnected_until: OffsetDateTime,
    clock: SteadyClock,
    /// Error of its wall clock.
    clock_error: Span,
    leaf: Option<(CertificateDer<'static>, Leaf)>,
    /// The last leaf and bundle that were verified.
    verified: Option<(CertificateDer<'static>, String)>,
}

impl SimulatedReplica {
    fn start(at: OffsetDateTime, error: Span, epoch: Instant) -> Self {
        let clock = SteadyClock::start(at + error, epoch);
        Self {
            signer: LeafSigner::default(),
            last_secret: None,
            observed: ObservedBundle::Never,
            disconnected_until: at,
            started_at: at,
            clock,
            clock_error: error,
            leaf: None,
            verified: None,
        }
    }
}

struct Simulation {
    random: Random,
    now: OffsetDateTime,
    epoch: Instant,
    cluster: Cluster,
    controller_trust: BundleTrust,
    controller_observed: ObservedBundle,
    /// The Secret as the controller last read it.
    read: (Secret, Result<CaSecret, SecretError>),
    /// The CAs that the controller has in memory.
    known: Vec<CaCertificate>,
    controller_is_down_until: OffsetDateTime,
    active_until: OffsetDateTime,
    replicas: Vec<SimulatedReplica>,
    steps: Vec<RotationStep>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let epoch = Instant::now();
        let cluster = Cluster { secret: None, bundle: Some(String::new()), recent: Vec::new(), is_tampered_with: true };
        Self {
            random: Random(seed),
            now: START,
            epoch,
            cluster,
            controller_trust: BundleTrust::default(),
            controller_observed: ObservedBundle::Never,
            read: (None, Err(SecretError::Missing)),
            known: Vec::new(),
            controller_is_down_until: START,
            active_until: START,
            replicas: (0..3).map(|_| SimulatedReplica::start(START, Span::ZERO, epoch)).collect(),
            steps: Vec::new(),
        }
    }

    /// Returns the monotonic time.
    fn at(&self) -> Instant {
        self.epoch + Duration::try_from(self.now - START).unwrap()
    }

    fn advance_time(&mut self) {
        // Seconds during activity, else hours.
        let is_idle = self.is_steady() && self.now > self.active_until && !self.random.one_in(8);
        let passed = if is_idle { self.random.hours(1, 6) } else { self.random.hours(1, 4) / 3600 };
        self.advance_to(self.now + passed);
    }

    fn is_steady(&self) -> bool {
        let Cluster { secret, bundle, is_tampered_with, .. } = &self.cluster;
        let Some(data) = secret else { return false };
        !is_tampered_with
            && !data.contains_key("next.crt")
            && bundle.as_ref().is_none_or(|bundle| bundle.starts_with(&data["tls.crt"]))
    }

    fn advance_to(&mut self, now: OffsetDateTime) {
        self.now = now;
        let horizon = self.now - Span::try_from(BUNDLE_PROPAGATION_TIME).unwrap() + Span::seconds(1);
        self.cluster.recent.retain(|(until, _)| *until > horizon);
    }

    /// Reconciles the CA Secret, as the leader does.
    fn reconcile_authority(&mut self) {
        let at = self.at();
        let live = ObservedBundle::Bundle(self.cluster.bundle.clone());
        if self.controller_observed != live {
            self.controller_trust.observe_bundles(&self.cluster.bundles(), at);
            self.controller_observed = live;
        }
        if self.read.0 != self.cluster.secret {
            self.read = (self.cluster.secret.clone(), self.cluster.stored());
        }
        let stored = self.read.1.as_ref();
        if let Ok(stored) = stored {
            self.known = stored.certificates().cloned().collect();
        }
        let next = stored.ok().and_then(|stored| stored.next.as_ref());
        let is_trusted = next.is_some_and(|next| self.controller_trust.is_propagated(next.certificate(), at));
        let step = next_step(stored, is_trusted, self.now);
        if step == RotationStep::Keep {
            return;
        }
        let written = match (step, self.cluster.stored()) {
            (RotationStep::Replace(_), _) => {
                let trusted = [&self.known[..], &self.controller_trust.certificates()].concat();
                CaSecret::replace(&trusted, self.now).unwrap()
            }
            (RotationStep::Prepare(_), Ok(stored)) => stored.prepare(self.now).unwrap(),
            (RotationStep::Promote(_), Ok(stored)) => stored.promote(self.now),
            (RotationStep::Retire, Ok(stored)) => stored.retire(),
            (step, stored) => panic!("{step:?} of {stored:?}"),
        };
        self.steps.push(step);
        self.cluster.secret = Some(written.data());
    }

    /// Reconciles the bundle, as the leader does.
    fn reconcile_bundle(&mut self) {
        let (Some(data), true) = (&self.cluster.secret, self.cluster.bundle.is_some()) else { return };
        if data["tls.key"] == BROKEN {
            return;
        }
        let wanted: String =
            ["tls.crt", "next.crt", "old.crt"].iter().filter_map(|key| data.get(*key).cloned()).collect();
        if self.cluster.bundle.as_ref() != Some(&wanted) {
            self.cluster.publish(Some(wanted), self.now);
        }
        self.cluster.is_tampered_with = false;
    }

    fn replica_acts(&mut self, index: usize, observes: bool) {
        let (at, now) = (self.at(), self.now);
        let replica = &mut self.replicas[index];
        if observes && now >= replica.disconnected_until {
            if replica.last_secret != self.cluster.secret {
                replica.signer.stored = Some(self.cluster.stored());
                replica.last_secret.clone_from(&self.cluster.secret);
            }
            let live = ObservedBundle::Bundle(self.cluster.bundle.clone());
            if replica.observed != live {
                replica.signer.trusted.observe_bundles(&self.cluster.bundles(), at);
                replica.observed = live;
            }
        }
        let believed = replica.clock.read(now + replica.clock_error, at);
        if let Some(key) = replica.signer.sign_if_due(&[NAME.to_owned()], believed, at).unwrap() {
            replica.leaf = Some((key.cert[0].clone(), Leaf::new(key).unwrap()));
        }
    }

    fn inject_faults(&mut self) {
        // A stopped controller cannot restore a missing Secret or bundle. An alert reports this state.
        if self.random.one_in(300) && self.is_steady() {
            self.controller_is_down_until = self.now + self.random.hours(1, 24 * 60);
        }
        if self.random.one_in(300) {
            let index = usize::try_from(self.random.below(3)).unwrap();
            self.replicas[index].clock_error = self.random.hours(-72, 72);
        }
        if self.random.one_in(300) {
            let index = usize::try_from(self.random.below(3)).unwrap();
            // A replica cannot sign a trusted leaf if its clock starts a third of a leaf's validity behind.
            let error = self.replicas[index].clock_error.max(Span::hours(-2));
            self.replicas[index] = SimulatedReplica::start(self.now, error, self.at());
        }
        if self.random.one_in(20) {
            let index = usize::try_from(self.random.below(3)).unwrap();
            self.replicas[index].disconnected_until = self.now + self.random.hours(1, 24);
        }
        // The controller must repair these faults.
        if self.controller_is_down_until > self.now {
            return;
        }
        let is_absent = self.cluster.bundle.is_none();
        match self.random.below(3000) {
            4..60 if is_absent => {
                self.cluster.publish(Some(String::new()), self.now);
                self.cluster.is_tampered_with = true;
            }
            0 => self.cluster.secret = None,
            1 => drop(self.cluster.secret.as_mut().map(|data| data.insert("tls.key".to_owned(), BROKEN.to_owned()))),
            2 => self.cluster.publish(None, self.now),
            3 if !is_absent => {
                self.cluster.publish(Some(String::new()), self.now);
                self.cluster.is_tampered_with = true;
            }
            _ => {}
        }
    }

    fn step(&mut self) {
        self.advance_time();
        self.inject_faults();
        let mut order = [0, 1, 2, 3, 4];
        for from in (1..order.len()).rev() {
            order.swap(from, usize::try_from(self.random.below(from as u64 + 1)).unwrap());
        }
        let before = (self.cluster.secret.clone(), self.cluster.bundle.clone());
        let controller_is_up = self.now >= self.controller_is_down_until;
        for actor in order {
            // Sometimes a replica acts without having observed the latest changes.
            let observes = !self.random.one_in(8);
            match actor {
                3 if controller_is_up => self.reconcile_authority(),
                4 if controller_is_up => self.reconcile_bundle(),
                3 | 4 => {}
                replica => self.replica_acts(replica, observes),
            }
            self.check();
        }
        if before != (self.cluster.secret.clone(), self.cluster.bundle.clone()) {
            self.active_until = self.now + 2 * BUNDLE_PROPAGATION_TIME;
        }
        if self.now < self.controller_is_down_until {
            (self.controller_trust, self.controller_observed, self.known) =
                (BundleTrust::default(), ObservedBundle::Never, Vec::new());
        }
    }

    /// Checks that every served certificate is trusted: by the live bundle, and by bundles that an API server may
    /// still use.
    fn check(&mut self) {
        if self.cluster.is_tampered_with {
            return;
        }
        let recent = self.cluster.recent.iter().filter_map(|(until, bundle)| Some((*until, bundle.as_ref()?)));
        let live = self.cluster.bundle.iter().map(|bundle| (self.now, bundle));
        // The API server trusts no CA before the first bundle, or while the bundle is empty.
        let bundles: Vec<_> = live.chain(recent).filter(|(_, bundle)| !bundle.is_empty()).collect();
        for (index, replica) in self.replicas.iter_mut().enumerate() {
            let Some((certificate, leaf)) = &replica.leaf else { continue };
            let (now, error, steps) = (self.now, replica.clock_error, &self.steps);
            let context = || format!("{now} replica {index} (clock off by {error}), steps {steps:?}");
            assert!(leaf.is_valid(now), "not valid now: {}", context());
            // A replica that started later does not know the age of a CA in the bundle.
            for (_, bundle) in bundles
                .iter()
                .filter(|(until, _)| *until >= replica.started_at + BUNDLE_PROPAGATION_TIME || *until == self.now)
            {
                let pair = Some((certificate.clone(), (*bundle).clone()));
                if replica.verified != pair {
                    verify(certificate, bundle, self.now).unwrap_or_else(|error| panic!("{error}: {}", context()));
                    replica.verified = pair;
                }
            }
        }
    }
}

fn verify(certificate: &CertificateDer<'_>, bundle: &str, now: OffsetDateTime) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.unwrap())?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.unix_timestamp().try_into().unwrap()));
    let name = ServerName::try_from(NAME).unwrap();
    verifier.verify_server_cert(certificate, &[], &name, &[], now).map(|_| ())
}

#[test]
fn served_certificates_stay_trusted_through_years_of_faults() {
    for seed in 0..3 {
        let mut simulation = Simulation::new(seed);
        while simulation.now < START + Span::days(3 * 365) {
            simulation.step();
        }
        let count =
            |wanted: &dyn Fn(&RotationStep) -> bool| simulation.steps.iter().filter(|step| wanted(step)).count();
        assert!(count(&|step| *step == RotationStep::Retire) >= 2, "no rotation was completed: {:?}", simulation.steps);
        assert_eq!(
            count(&|step| matches!(step, RotationStep::Replace(RotationReason::Expired | RotationReason::NotYetValid))),
            0
        );
    }
}

#[test]
fn the_ca_rotates_every_eight_months_and_old_cas_are_removed() {
    let mut simulation = Simulation::new(0);
    let mut most = 0;
    while simulation.now < START + Span::days(800) {
        simulation.advance_to(simulation.now + Span::hours(2));
        simulation.reconcile_authority();
        simulation.reconcile_bundle();
        (0..3).for_each(|index| simulation.replica_acts(index, true));
        simulation.check();
        most = most.max(simulation.cluster.stored().unwrap().certificates().count());
    }
    let rotation = [
        RotationStep::Prepare(RotationReason::RotationDue),
        RotationStep::Promote(RotationReason::Trusted),
        RotationStep::Retire,
    ];
    assert_eq!(
        simulation.steps,
        [&[RotationStep::Replace(RotationReason::Missing)][..], &rotation, &rotation, &rotation].concat()
    );
    assert_eq!(most, 2);
    assert_eq!(simulation.cluster.stored().unwrap().certificates().count(), 1);
}
