//! Self-managed certificates: the real webhook and the real controller, each with the permissions of its own account, in a cluster of
//! their own.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Pod};
use kube::{Api, Client, api::PostParams};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::{Value, json};
use spillway::certs::authority::{Stored, certificates};
use time::OffsetDateTime;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;

use crate::{
    admission::pod,
    drills::held_pod,
    harness::{
        ControlPlane, Controller, Namespace, Sandbox, Webhook, eventually, install, sandbox, webhook_configuration,
    },
};

const CONFIGURATION: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/aci-spillway";
const SECRET: &str = "/api/v1/namespaces/spillway-system/secrets/spillway-ca";

/// Everything installed, except for what the controller makes and the webhook configuration. It is left so, too.
pub(crate) struct Installed(Sandbox);

impl Installed {
    pub(crate) fn new() -> Self {
        let installed = Self(sandbox());
        install(installed.plane());
        installed.clear();
        installed
    }

    pub(crate) fn plane(&self) -> &'static ControlPlane {
        self.0.plane
    }

    fn clear(&self) {
        self.plane().delete(CONFIGURATION);
        self.clear_authority();
    }

    /// As if no controller had run yet.
    pub(crate) fn clear_authority(&self) {
        self.plane().delete(SECRET);
        self.clear_lease();
    }

    /// As if the controller that led had given its lease back, so that the next leads at once.
    pub(crate) fn clear_lease(&self) {
        self.plane().delete("/apis/coordination.k8s.io/v1/namespaces/spillway-system/leases/spillway-controller");
    }

    /// The authority as it is stored, if it can be used.
    fn stored(&self) -> Option<Stored> {
        let secret = self.plane().find(SECRET)?;
        let data = secret["data"].as_object()?.iter();
        let data = data.map(|(key, value)| (key.clone(), STANDARD.decode(value.as_str().unwrap()).unwrap()));
        Stored::read(&data.collect()).ok()
    }

    fn store(&self, stored: &Stored) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "spillway-ca", "namespace": "spillway-system"}, "stringData": stored.data(),
        });
        self.plane().create_in(Some("spillway-system"), &secret);
    }

    /// The caBundle of each webhook of the configuration.
    fn bundles(&self) -> Vec<String> {
        let webhooks = self.plane().get(CONFIGURATION);
        let bundle = |webhook: &Value| {
            let bundle = webhook["clientConfig"]["caBundle"].as_str().unwrap_or_default();
            String::from_utf8(STANDARD.decode(bundle).unwrap()).unwrap()
        };
        webhooks["webhooks"].as_array().unwrap().iter().map(bundle).collect()
    }

    /// Waits until every webhook has the bundle that the authority's Secret asks for.
    fn bundles_are_right(&self) {
        eventually("the caBundle to be that of the authority", || {
            let wanted = self.stored()?.bundle();
            let bundles = self.bundles();
            (!bundles.is_empty() && bundles.iter().all(|bundle| *bundle == wanted)).then_some(())
        });
    }

    /// The reasons of the events about the authority.
    fn events(&self) -> Vec<String> {
        let events = self.plane().events("spillway-system");
        let about = events.iter().filter(|event| event["regarding"]["name"] == "spillway-ca");
        about.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        self.clear();
    }
}

/// At least so many pods are created, and so many certificates looked at.
const CREATED: usize = 100;
const VERIFIED: usize = 50;

/// Creates pods until it is told to stop, and looks at the certificate that is served meanwhile.
struct Load {
    namespace: Namespace,
    plane: &'static ControlPlane,
    is_over: Arc<AtomicBool>,
    created: JoinHandle<usize>,
    verified: JoinHandle<usize>,
}

impl Load {
    async fn start(plane: &'static ControlPlane, webhook: SocketAddr) -> Self {
        let namespace = plane.namespace(Some("enabled"));
        let is_over = Arc::new(AtomicBool::new(false));
        let created = tokio::spawn(create(plane.client().await, namespace.name.clone(), is_over.clone()));
        let verified = tokio::spawn(verify(plane.client().await, webhook, is_over.clone()));
        Self { namespace, plane, is_over, created, verified }
    }

    /// Every pod was decided on, no call failed, and every certificate that was served was trusted.
    async fn nothing_was_lost(self) {
        self.is_over.store(true, Ordering::Relaxed);
        let (created, verified) = (self.created.await.unwrap(), self.verified.await.unwrap());
        let pods = self.namespace.pods();
        let decided = pods.iter().filter(|pod| !pod["metadata"]["annotations"]["spillway.dev/decision"].is_null());
        assert_eq!((decided.count(), self.plane.failed_open(&self.namespace.name)), (created, 0));
        assert!(created >= CREATED && verified >= VERIFIED, "{created} {verified}");
    }
}

async fn create(client: Client, namespace: String, is_over: Arc<AtomicBool>) -> usize {
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let mut created = 0;
    while !is_over.load(Ordering::Relaxed) || created < CREATED {
        // Held by a gate: hundreds of pods would fill the nodes of the tests that follow.
        api.create(&PostParams::default(), &held_pod(&format!("load-{created}"))).await.unwrap();
        created += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    created
}

/// The API server verifies a certificate when it opens a connection, and keeps its connections: here is a new one each time.
async fn verify(client: Client, webhook: SocketAddr, is_over: Arc<AtomicBool>) -> usize {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client);
    let mut verified = 0;
    while !is_over.load(Ordering::Relaxed) || verified < VERIFIED {
        let live = api.get("aci-spillway").await.unwrap().webhooks.unwrap();
        for webhook_in_it in live {
            let mut roots = RootCertStore::empty();
            let bundle = webhook_in_it.client_config.ca_bundle.unwrap().0;
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bundle).map(Result::unwrap));
            let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
            let tls = tls.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
            let connector = TlsConnector::from(Arc::new(tls.with_no_client_auth()));
            let tcp = TcpStream::connect(webhook).await.unwrap();
            connector.connect("127.0.0.1".try_into().unwrap(), tcp).await.expect("a certificate that is trusted");
            verified += 1;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    verified
}

/// The manifest as it is shipped, where a Service is called.
fn without_bundle(manifest: &str) -> String {
    let lines: Vec<_> = manifest.lines().filter(|line| !line.contains("caBundle")).collect();
    lines.join("\n")
}

fn expiry(webhook: &Webhook) -> u64 {
    webhook.metric("spillway_certificate_expiry_timestamp_seconds")
}

fn signed(webhook: &Webhook) -> u64 {
    webhook.metric(r#"spillway_certificate_reloads_total{result="success"}"#)
}

#[test]
fn a_webhook_that_starts_first_waits_for_its_authority_and_then_for_the_bundle() {
    let installed = Installed::new();
    let plane = installed.plane();
    let webhook = Webhook::start_self_managed(plane, "certificates-first", &[]);
    let waits_for = |what: &str| {
        let expected = (503, format!("not ready: certificate: waiting for {what}, which spillway-controller writes\n"));
        eventually(what, || (webhook.admin("/readyz") == expected).then_some(()));
    };
    plane.apply(&webhook_configuration(plane, webhook.address));
    waits_for("Secret spillway-ca");
    installed.store(&Stored::replace(&[], OffsetDateTime::now_utc()).unwrap());
    waits_for("the caBundle of aci-spillway");
    assert_eq!(expiry(&webhook), 0);
    let _controller = Controller::start(plane, "certificates-first-controller", &[]);
    let _ready = webhook.ready();
    installed.bundles_are_right();
}

#[test]
fn without_a_webhook_configuration_there_is_an_authority_and_no_error() {
    let installed = Installed::new();
    let plane = installed.plane();
    let controller = Controller::start(plane, "certificates-absent", &[]);
    let webhook = Webhook::start_self_managed(plane, "certificates-absent-webhook", &[]).ready();
    eventually("the bundle to be looked after", || {
        (controller.metric(r#"spillway_reconciles_total{reconciler="ca-bundle",result="success"}"#) > 0).then_some(())
    });
    for reconciler in ["authority", "ca-bundle"] {
        let failures = format!(r#"spillway_reconciles_total{{reconciler="{reconciler}",result="failure"}}"#);
        assert_eq!(controller.metric(&failures), 0, "{:#?}", controller.log());
    }
    assert!(installed.events().contains(&"AuthorityCreated".to_owned()));
    let day = u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap() + 24 * 3600;
    assert!(expiry(&webhook).abs_diff(day) < 300);
}

#[test]
fn certificates_from_elsewhere_are_left_alone_until_the_configuration_says_otherwise() {
    let installed = Installed::new();
    let plane = installed.plane();
    let file = plane.dir.join("certificates-elsewhere.yaml");
    let configure = |source: &str| {
        let head = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n";
        fs::write(&file, format!("{head}certificates: {{source: {source}}}\n")).unwrap();
    };
    configure("cert-manager");
    plane.apply(&webhook_configuration(plane, "127.0.0.1:9".parse().unwrap()));
    let controller = Controller::start(plane, "certificates-elsewhere", &["--config", file.to_str().unwrap()]);
    for reconciler in ["authority", "ca-bundle"] {
        let rounds = format!(r#"spillway_reconciles_total{{reconciler="{reconciler}",result="success"}}"#);
        eventually(reconciler, || (controller.metric(&rounds) > 1).then_some(()));
    }
    assert!(installed.stored().is_none());
    assert!(installed.bundles().iter().all(|bundle| bundle == "\n"));
    configure("self-managed");
    installed.bundles_are_right();
}

/// Applies in every way that people and tools do, and each time the webhook is called again.
#[test]
fn a_manifest_that_is_applied_again_keeps_the_bundle_or_gets_it_back() {
    let installed = Installed::new();
    let plane = installed.plane();
    let _controller = Controller::start(plane, "certificates-apply", &[]);
    let webhook = Webhook::start_self_managed(plane, "certificates-apply-webhook", &[]).ready();
    let emptied = webhook_configuration(plane, webhook.address);
    let without = without_bundle(&emptied);
    // Somebody else's configuration is none of the controller's business, whatever is in it.
    let other = without.replace("name: aci-spillway", "name: aci-spillway-other");
    plane.kubectl_with(&["create", "-f", "-"], &other);
    let namespace = plane.namespace(Some("enabled"));
    let is_called = |how: &str| {
        eventually(how, || {
            let pod = namespace.dry_run(&pod("probe", &json!({})));
            (!pod["metadata"]["annotations"]["spillway.dev/decision"].is_null()).then_some(())
        });
    };
    for (how, args, manifest) in [
        ("create", &["create"][..], &without),
        ("apply with an empty bundle", &["apply"], &emptied),
        ("apply without a bundle", &["apply"], &without),
        ("replace", &["replace"], &without),
        ("replace by force", &["replace", "--force"], &without),
        ("apply on the server", &["apply", "--server-side"], &without),
        ("apply on the server, an empty bundle by force", &["apply", "--server-side", "--force-conflicts"], &emptied),
    ] {
        plane.kubectl_with(&[args, &["-f", "-"][..]].concat(), manifest);
        installed.bundles_are_right();
        is_called(how);
    }
    let path = CONFIGURATION.replace("aci-spillway", "aci-spillway-other");
    let other = plane.get(&path)["webhooks"].to_string();
    plane.delete(&path);
    assert!(other.contains("clientConfig") && !other.contains("caBundle"), "{other}");
}

/// Had the controller written by server-side apply, it would own a part of each webhook: what is taken out of the manifest would stay, as
/// half a webhook that the API server refuses.
#[test]
fn a_later_manifest_without_one_of_the_webhooks_can_be_applied() {
    for args in [&["apply"][..], &["apply", "--server-side"]] {
        let installed = Installed::new();
        let plane = installed.plane();
        let _controller = Controller::start(plane, "certificates-fewer", &[]);
        let apply = |manifest: &str| plane.kubectl_with(&[args, &["-f", "-"][..]].concat(), manifest);
        let every = webhook_configuration(plane, "127.0.0.1:9".parse().unwrap());
        let every = without_bundle(&every);
        apply(&every);
        installed.bundles_are_right();
        let all = installed.bundles().len();
        let mut fewer: Value = serde_saphyr::from_str(&every).unwrap();
        fewer["webhooks"].as_array_mut().unwrap().pop();
        apply(&fewer.to_string());
        installed.bundles_are_right();
        assert_eq!(installed.bundles().len(), all - 1);
        apply(&every);
        installed.bundles_are_right();
        assert_eq!(installed.bundles().len(), all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_is_deleted_or_broken_is_replaced_and_no_call_fails_meanwhile() {
    let installed = Installed::new();
    let plane = installed.plane();
    let controller = Controller::start(plane, "certificates-deleted", &[]);
    let webhook = Webhook::start_self_managed(plane, "certificates-deleted-webhook", &[]).ready();
    plane.apply(&webhook_configuration(plane, webhook.address));
    installed.bundles_are_right();
    let load = Load::start(plane, webhook.address).await;
    let secret = ["-n", "spillway-system"];
    let garbage = r#"{"data":{"tls.key":"Z2FyYmFnZQ=="}}"#;
    for (change, reason) in [
        (&["delete", "secret", "spillway-ca"][..], "AuthorityCreated"),
        (&["patch", "secret", "spillway-ca", "-p", garbage], "AuthorityReplaced"),
    ] {
        let (former, before) = (installed.stored().unwrap(), signed(&webhook));
        let former = former.current.certificate();
        plane.kubectl(&[&secret, change].concat());
        eventually("a new authority", || (installed.stored()?.current.certificate() != former).then_some(()));
        installed.bundles_are_right();
        let bundle = &installed.bundles()[0];
        assert!(certificates(bundle.as_bytes()).contains(former), "the former one is trusted for a while: {bundle}");
        eventually("the replica to serve under the new authority", || (signed(&webhook) > before).then_some(()));
        eventually("the event", || installed.events().contains(&reason.to_owned()).then_some(()));
    }
    assert!(controller.metric(r#"spillway_ca_certificates{state="old"}"#) >= 2);
    load.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_is_rotated_and_no_call_fails_meanwhile() {
    let installed = Installed::new();
    let plane = installed.plane();
    // Of an age at which it is to be rotated.
    let old = Stored::replace(&[], OffsetDateTime::now_utc() - time::Duration::days(300)).unwrap();
    installed.store(&old);
    let webhook = Webhook::start_self_managed(plane, "certificates-rotated-webhook", &[]).ready();
    let bundle = format!("caBundle: {}", STANDARD.encode(old.bundle()));
    let configuration = webhook_configuration(plane, webhook.address).replace("caBundle: Cg==", &bundle);
    plane.apply(&configuration);
    let load = Load::start(plane, webhook.address).await;
    let before = signed(&webhook);
    let controller = Controller::start(plane, "certificates-rotated", &[]);
    eventually("the successor to sign", || {
        let stored = installed.stored()?;
        (stored.next.is_none() && stored.current.certificate() != old.current.certificate()).then_some(())
    });
    eventually("the replica to serve under the new authority", || (signed(&webhook) > before).then_some(()));
    installed.bundles_are_right();
    assert!(certificates(installed.bundles()[0].as_bytes()).contains(old.current.certificate()));
    eventually("the metrics", || (controller.metric(r#"spillway_ca_certificates{state="old"}"#) == 1).then_some(()));
    for reason in ["AuthorityRotating", "AuthorityRotated"] {
        eventually(reason, || installed.events().contains(&reason.to_owned()).then_some(()));
    }
    load.nothing_was_lost().await;
}
