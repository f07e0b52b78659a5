//! Years of rotations in a simulated cluster: the authority's keeper, some replicas, an API server, and what can go wrong with
//! them. At every moment each replica's certificate is held against the live bundle.

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
    authority::{CaCertificate, Lacking, SETTLED, Step, Stored, Why, assess},
    replica::{Clock, Replica},
    trusted::Trusted,
};

const NAME: &str = "spillway-webhook.spillway-system.svc";
const BROKEN: &str = "?";
const START: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

/// A small linear congruential generator (Knuth's MMIX): a failing seed can be run again.
struct Dice(u64);

impl Dice {
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

/// The bundle as somebody has seen it last; one that was seen may be absent too.
#[derive(PartialEq)]
enum Seen {
    Nothing,
    Bundle(Option<String>),
}

type Secret = Option<BTreeMap<String, String>>;

/// What the API server holds.
struct Cluster {
    secret: Secret,
    /// The bundle of both webhooks; nothing if there is no configuration.
    bundle: Option<String>,
    /// Bundles that were live in the last seconds: another API server may still go by them.
    recent: Vec<(OffsetDateTime, Option<String>)>,
    /// Somebody has changed the bundle, and the controller has not mended it yet.
    is_tampered_with: bool,
}

impl Cluster {
    fn stored(&self) -> Result<Stored, Lacking> {
        Ok(Stored::read(self.secret.as_ref().ok_or(Lacking::Missing)?)?)
    }

    fn publish(&mut self, bundle: Option<String>, now: OffsetDateTime) {
        self.recent.push((now, self.bundle.take()));
        self.bundle = bundle;
    }

    fn bundles(&self) -> Vec<&[u8]> {
        self.bundle.iter().flat_map(|bundle| [bundle.as_bytes(), bundle.as_bytes()]).collect()
    }
}

struct Node {
    replica: Replica,
    /// The Secret as the replica has seen it last.
    read: Secret,
    /// The bundle as it has seen it last.
    saw: Seen,
    since: OffsetDateTime,
    /// Until then it hears nothing of the cluster.
    deaf_until: OffsetDateTime,
    clock: Clock,
    /// How far its wall clock is off.
    error: Span,
    leaf: Option<(CertificateDer<'static>, Leaf)>,
    /// The last leaf and bundle that were held against each other.
    verified: Option<(CertificateDer<'static>, String)>,
}

impl Node {
    fn start(at: OffsetDateTime, error: Span, epoch: Instant) -> Self {
        let clock = Clock::start(at + error, epoch);
        Self {
            replica: Replica::default(),
            read: None,
            saw: Seen::Nothing,
            deaf_until: at,
            since: at,
            clock,
            error,
            leaf: None,
            verified: None,
        }
    }
}

struct World {
    dice: Dice,
    now: OffsetDateTime,
    epoch: Instant,
    cluster: Cluster,
    keeper: Trusted,
    keeper_saw: Seen,
    /// The Secret as the controller has read it last.
    read: (Secret, Result<Stored, Lacking>),
    /// What the controller remembers of the Secret.
    known: Vec<CaCertificate>,
    keeper_is_down_until: OffsetDateTime,
    busy_until: OffsetDateTime,
    nodes: Vec<Node>,
    steps: Vec<Step>,
}

impl World {
    fn new(seed: u64) -> Self {
        let epoch = Instant::now();
        let cluster = Cluster { secret: None, bundle: Some(String::new()), recent: Vec::new(), is_tampered_with: true };
        Self {
            dice: Dice(seed),
            now: START,
            epoch,
            cluster,
            keeper: Trusted::default(),
            keeper_saw: Seen::Nothing,
            read: (None, Err(Lacking::Missing)),
            known: Vec::new(),
            keeper_is_down_until: START,
            busy_until: START,
            nodes: (0..3).map(|_| Node::start(START, Span::ZERO, epoch)).collect(),
            steps: Vec::new(),
        }
    }

    /// The monotonic clock.
    fn at(&self) -> Instant {
        self.epoch + Duration::try_from(self.now - START).unwrap()
    }

    fn pass(&mut self) {
        // Seconds while something is going on, else hours.
        let is_slow = self.is_quiet() && self.now > self.busy_until && !self.dice.one_in(8);
        let passed = if is_slow { self.dice.hours(1, 6) } else { self.dice.hours(1, 4) / 3600 };
        self.forget_until(self.now + passed);
    }

    fn is_quiet(&self) -> bool {
        let Cluster { secret, bundle, is_tampered_with, .. } = &self.cluster;
        let Some(data) = secret else { return false };
        !is_tampered_with
            && !data.contains_key("next.crt")
            && bundle.as_ref().is_none_or(|bundle| bundle.starts_with(&data["tls.crt"]))
    }

    fn forget_until(&mut self, now: OffsetDateTime) {
        self.now = now;
        let horizon = self.now - Span::try_from(SETTLED).unwrap() + Span::seconds(1);
        self.cluster.recent.retain(|(until, _)| *until > horizon);
    }

    /// The controller looks at the authority, as its elected replica does.
    fn keep_authority(&mut self) {
        let at = self.at();
        let live = Seen::Bundle(self.cluster.bundle.clone());
        if self.keeper_saw != live {
            self.keeper.observe_bundles(&self.cluster.bundles(), at);
            self.keeper_saw = live;
        }
        if self.read.0 != self.cluster.secret {
            self.read = (self.cluster.secret.clone(), self.cluster.stored());
        }
        let stored = self.read.1.as_ref();
        if let Ok(stored) = stored {
            self.known = stored.certificates().cloned().collect();
        }
        let next = stored.ok().and_then(|stored| stored.next.as_ref());
        let is_trusted = next.is_some_and(|next| self.keeper.is_settled(next.certificate(), at));
        let step = assess(stored, is_trusted, self.now);
        if step == Step::Keep {
            return;
        }
        let written = match (step, self.cluster.stored()) {
            (Step::Replace(_), _) => {
                let trusted = [&self.known[..], &self.keeper.certificates()].concat();
                Stored::replace(&trusted, self.now).unwrap()
            }
            (Step::Prepare(_), Ok(stored)) => stored.prepare(self.now).unwrap(),
            (Step::Promote(_), Ok(stored)) => stored.promote(self.now),
            (Step::Retire, Ok(stored)) => stored.retire(),
            (step, stored) => panic!("{step:?} of {stored:?}"),
        };
        self.steps.push(step);
        self.cluster.secret = Some(written.data());
    }

    /// The controller looks at the bundle.
    fn keep_bundle(&mut self) {
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

    fn replica_acts(&mut self, index: usize, looks: bool) {
        let (at, now) = (self.at(), self.now);
        let node = &mut self.nodes[index];
        if looks && now >= node.deaf_until {
            if node.read != self.cluster.secret {
                node.replica.stored = Some(self.cluster.stored());
                node.read.clone_from(&self.cluster.secret);
            }
            let live = Seen::Bundle(self.cluster.bundle.clone());
            if node.saw != live {
                node.replica.trusted.observe_bundles(&self.cluster.bundles(), at);
                node.saw = live;
            }
        }
        let believed = node.clock.read(now + node.error, at);
        if let Some(key) = node.replica.renew(&[NAME.to_owned()], believed, at).unwrap() {
            node.leaf = Some((key.cert[0].clone(), Leaf::new(key).unwrap()));
        }
    }

    fn something_happens(&mut self) {
        // A controller that is gone when the Secret is gone too, or the bundle, is for its alert to tell.
        if self.dice.one_in(300) && self.is_quiet() {
            self.keeper_is_down_until = self.now + self.dice.hours(1, 24 * 60);
        }
        if self.dice.one_in(300) {
            let index = usize::try_from(self.dice.below(3)).unwrap();
            self.nodes[index].error = self.dice.hours(-72, 72);
        }
        if self.dice.one_in(300) {
            let index = usize::try_from(self.dice.below(3)).unwrap();
            // A clock that is a third of a certificate's life behind at the start is beyond help.
            let error = self.nodes[index].error.max(Span::hours(-2));
            self.nodes[index] = Node::start(self.now, error, self.at());
        }
        if self.dice.one_in(20) {
            let index = usize::try_from(self.dice.below(3)).unwrap();
            self.nodes[index].deaf_until = self.now + self.dice.hours(1, 24);
        }
        // These need the controller soon.
        if self.keeper_is_down_until > self.now {
            return;
        }
        let is_absent = self.cluster.bundle.is_none();
        match self.dice.below(3000) {
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
        self.pass();
        self.something_happens();
        let mut order = [0, 1, 2, 3, 4];
        for from in (1..order.len()).rev() {
            order.swap(from, usize::try_from(self.dice.below(from as u64 + 1)).unwrap());
        }
        let before = (self.cluster.secret.clone(), self.cluster.bundle.clone());
        let keeper_is_up = self.now >= self.keeper_is_down_until;
        for actor in order {
            // Now and then without having heard of the latest changes.
            let looks = !self.dice.one_in(8);
            match actor {
                3 if keeper_is_up => self.keep_authority(),
                4 if keeper_is_up => self.keep_bundle(),
                3 | 4 => {}
                replica => self.replica_acts(replica, looks),
            }
            self.check();
        }
        if before != (self.cluster.secret.clone(), self.cluster.bundle.clone()) {
            self.busy_until = self.now + 2 * SETTLED;
        }
        if self.now < self.keeper_is_down_until {
            (self.keeper, self.keeper_saw, self.known) = (Trusted::default(), Seen::Nothing, Vec::new());
        }
    }

    /// Nobody is served what is not trusted: not by the live bundle, nor by one that an API server may still go by.
    fn check(&mut self) {
        if self.cluster.is_tampered_with {
            return;
        }
        let recent = self.cluster.recent.iter().filter_map(|(until, bundle)| Some((*until, bundle.as_ref()?)));
        let live = self.cluster.bundle.iter().map(|bundle| (self.now, bundle));
        // Before the first bundle, and after somebody has emptied it, nobody is trusted.
        let bundles: Vec<_> = live.chain(recent).filter(|(_, bundle)| !bundle.is_empty()).collect();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let Some((certificate, leaf)) = &node.leaf else { continue };
            let (now, error, steps) = (self.now, node.error, &self.steps);
            let context = || format!("{now} replica {index} (clock off by {error}), steps {steps:?}");
            assert!(leaf.is_valid(now), "not valid now: {}", context());
            // A replica that was not there yet cannot know since when the bundle carries what.
            for (_, bundle) in bundles.iter().filter(|(until, _)| *until >= node.since + SETTLED || *until == self.now)
            {
                let pair = Some((certificate.clone(), (*bundle).clone()));
                if node.verified != pair {
                    verify(certificate, bundle, self.now).unwrap_or_else(|error| panic!("{error}: {}", context()));
                    node.verified = pair;
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
fn for_years_every_replica_serves_what_the_live_bundle_trusts_whatever_happens() {
    for seed in 0..3 {
        let mut world = World::new(seed);
        while world.now < START + Span::days(3 * 365) {
            world.step();
        }
        let count = |wanted: &dyn Fn(&Step) -> bool| world.steps.iter().filter(|step| wanted(step)).count();
        assert!(count(&|step| *step == Step::Retire) >= 2, "nothing was put to the test: {:?}", world.steps);
        assert_eq!(count(&|step| matches!(step, Step::Replace(Why::Expired | Why::NotYetValid))), 0);
    }
}

#[test]
fn undisturbed_an_authority_is_rotated_every_eight_months_and_the_bundle_shrinks_again() {
    let mut world = World::new(0);
    let mut most = 0;
    while world.now < START + Span::days(800) {
        world.forget_until(world.now + Span::hours(2));
        world.keep_authority();
        world.keep_bundle();
        (0..3).for_each(|index| world.replica_acts(index, true));
        world.check();
        most = most.max(world.cluster.stored().unwrap().certificates().count());
    }
    let rotation = [Step::Prepare(Why::RotationDue), Step::Promote(Why::Trusted), Step::Retire];
    assert_eq!(world.steps, [&[Step::Replace(Why::Missing)][..], &rotation, &rotation, &rotation].concat());
    assert_eq!(most, 2);
    assert_eq!(world.cluster.stored().unwrap().certificates().count(), 1);
}
