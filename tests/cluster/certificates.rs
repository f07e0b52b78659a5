//! Self-managed certificates: the real webhook and the real controller, each with the permissions of its own account, in a
//! sandbox.

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
use spillway::certs::authority::{CaSecret, certificates};
use time::OffsetDateTime;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;

use crate::{
    admission::pod,
    drills::held_pod,
    harness::{
        AUTHORITY_SECRET, ControlPlane, Controller, InstalledSandbox, Namespace, WEBHOOK_CONFIGURATION, Webhook,
        eventually, webhook_configuration,
    },
};

impl InstalledSandbox {
    /// Returns the stored certificate authority, if it is usable.
    fn stored(&self) -> Option<CaSecret> {
        let secret = self.plane().find(AUTHORITY_SECRET)?;
        let data = secret["data"].as_object()?.iter();
        let data = data.map(|(key, value)| (key.clone(), STANDARD.decode(value.as_str().unwrap()).unwrap()));
        CaSecret::read(&data.collect()).ok()
    }

    fn store(&self, stored: &CaSecret) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "spillway-ca", "namespace": "spillway-system"}, "stringData": stored.data(),
        });
        self.plane().create_in(Some("spillway-system"), &secret);
    }

    /// Returns the `caBundle` of each webhook of the configuration.
    fn bundles(&self) -> Vec<String> {
        let webhooks = self.plane().get(WEBHOOK_CONFIGURATION);
        let bundle = |webhook: &Value| {
            let bundle = webhook["clientConfig"]["caBundle"].as_str().unwrap_or_default();
            String::from_utf8(STANDARD.decode(bundle).unwrap()).unwrap()
        };
        webhooks["webhooks"].as_array().unwrap().iter().map(bundle).collect()
    }

    /// Waits until every webhook has the bundle of the stored authority.
    fn wait_for_bundles(&self) {
        eventually("the caBundle to be that of the authority", || {
            let wanted = self.stored()?.bundle();
            let bundles = self.bundles();
            (!bundles.is_empty() && bundles.iter().all(|bundle| *bundle == wanted)).then_some(())
        });
    }

    /// Returns the reasons of the events about the authority.
    fn events(&self) -> Vec<String> {
        let events = self.plane().events("spillway-system");
        let about = events.iter().filter(|event| event["regarding"]["name"] == "spillway-ca");
        about.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }
}

/// The least number of pods to create and of certificates to verify.
const CREATED: usize = 100;
const VERIFIED: usize = 50;

/// Creates pods and verifies the serving certificate until it is stopped.
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

    /// Asserts that every pod was decided, no call failed, and every certificate was trusted.
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
        // The pods are gated: hundreds of pods would fill the nodes.
        api.create(&PostParams::default(), &held_pod(&format!("load-{created}"))).await.unwrap();
        created += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    created
}

/// The API server verifies a certificate once for each connection. This function opens a new connection each time.
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

/// Returns the manifest without a bundle, as it is shipped for a Service.
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
fn the_webhook_waits_for_its_authority_and_then_the_ca_bundle() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let webhook = Webhook::start_self_managed(plane, "certificates-first", &[]);
    let waits_for = |what: &str| {
        let expected = (503, format!("not ready: certificate: waiting for {what}, which spillway-controller writes\n"));
        eventually(what, || (webhook.admin("/readyz") == expected).then_some(()));
    };
    plane.apply(&webhook_configuration(plane, webhook.address));
    waits_for("Secret spillway-ca");
    installed.store(&CaSecret::replace(&[], OffsetDateTime::now_utc()).unwrap());
    waits_for("the caBundle of aci-spillway");
    assert_eq!(expiry(&webhook), 0);
    let _controller = Controller::start(plane, "certificates-first-controller", &[]);
    let _ready = webhook.ready();
    installed.wait_for_bundles();
}

#[test]
fn without_a_configuration_the_authority_is_created_anyway() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let controller = Controller::start(plane, "certificates-absent", &[]);
    let webhook = Webhook::start_self_managed(plane, "certificates-absent-webhook", &[]).ready();
    eventually("the controller to maintain the bundle", || {
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
fn the_controller_writes_certificates_only_if_self_managed() {
    let installed = InstalledSandbox::new();
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
    installed.wait_for_bundles();
}

/// Applies the manifest in the ways of users and tools. Each time the API server calls the webhook again.
#[test]
fn a_reapplied_manifest_keeps_or_regains_the_ca_bundle() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let _controller = Controller::start(plane, "certificates-apply", &[]);
    let webhook = Webhook::start_self_managed(plane, "certificates-apply-webhook", &[]).ready();
    let emptied = webhook_configuration(plane, webhook.address);
    let without = without_bundle(&emptied);
    // The controller does not change another configuration.
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
        installed.wait_for_bundles();
        is_called(how);
    }
    let path = WEBHOOK_CONFIGURATION.replace("aci-spillway", "aci-spillway-other");
    let other = plane.get(&path)["webhooks"].to_string();
    plane.delete(&path);
    assert!(other.contains("clientConfig") && !other.contains("caBundle"), "{other}");
}

/// With server-side apply the controller would own a part of each webhook. A webhook that a later manifest drops would stay,
/// incomplete, and the API server would refuse it.
#[test]
fn a_manifest_with_fewer_webhooks_can_be_applied() {
    for args in [&["apply"][..], &["apply", "--server-side"]] {
        let installed = InstalledSandbox::new();
        let plane = installed.plane();
        let _controller = Controller::start(plane, "certificates-fewer", &[]);
        let apply = |manifest: &str| plane.kubectl_with(&[args, &["-f", "-"][..]].concat(), manifest);
        let every = webhook_configuration(plane, "127.0.0.1:9".parse().unwrap());
        let every = without_bundle(&every);
        apply(&every);
        installed.wait_for_bundles();
        let all = installed.bundles().len();
        let mut fewer: Value = serde_saphyr::from_str(&every).unwrap();
        fewer["webhooks"].as_array_mut().unwrap().pop();
        apply(&fewer.to_string());
        installed.wait_for_bundles();
        assert_eq!(installed.bundles().len(), all - 1);
        apply(&every);
        installed.wait_for_bundles();
        assert_eq!(installed.bundles().len(), all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_authority_is_replaced_without_failed_calls() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let controller = Controller::start(plane, "certificates-deleted", &[]);
    let webhook = Webhook::start_self_managed(plane, "certificates-deleted-webhook", &[]).ready();
    plane.apply(&webhook_configuration(plane, webhook.address));
    installed.wait_for_bundles();
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
        installed.wait_for_bundles();
        let bundle = &installed.bundles()[0];
        assert!(certificates(bundle.as_bytes()).contains(former), "the former one is trusted for a while: {bundle}");
        eventually("the replica to serve under the new authority", || (signed(&webhook) > before).then_some(()));
        eventually("the event", || installed.events().contains(&reason.to_owned()).then_some(()));
    }
    eventually("both former authorities to be counted", || {
        (controller.metric(r#"spillway_ca_certificates{state="old"}"#) >= 2).then_some(())
    });
    load.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_is_rotated_without_failed_calls() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    // Old enough for a rotation.
    let old = CaSecret::replace(&[], OffsetDateTime::now_utc() - time::Duration::days(300)).unwrap();
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
    installed.wait_for_bundles();
    assert!(certificates(installed.bundles()[0].as_bytes()).contains(old.current.certificate()));
    eventually("the metrics", || (controller.metric(r#"spillway_ca_certificates{state="old"}"#) == 1).then_some(()));
    for reason in ["AuthorityRotating", "AuthorityRotated"] {
        eventually(reason, || installed.events().contains(&reason.to_owned()).then_some(()));
    }
    load.nothing_was_lost().await;
}
