//! What is known of managed identities and their credentials, kept up to date beside the passes: Azure may be slow, and they go on
//! with what it said last.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use kube::Client;
use tokio::{sync::watch, task::JoinSet, time};

use crate::{
    background::again_after_panic,
    config::Identity,
    controller::changes::watch_changes,
    credentials::{Source, Sources, Wanted, configured, custom_resources::CustomResources, merged},
    identity::{azure::Azure, seen::ServiceAccount},
    telemetry::Causes,
};

/// How often the sources are asked. Azure Resource Manager keeps what it is told for as long as the configuration says.
const PERIOD: Duration = Duration::from_secs(60);

/// The least time between two askings, however often it changes what is wanted, and between a change and reading it.
const PAUSE: Duration = Duration::from_secs(2);

/// The least time between two readings of custom resources, and how many times as long as one of them it is: each lists all.
const REST: Duration = Duration::from_secs(5);
const REST_FACTOR: u32 = 20;

/// How often it is looked whether custom resources are there at all, and whether others are.
const DISCOVERY: Duration = Duration::from_secs(300);

/// What the custom resources say: nothing before they were looked for.
type Inside = Option<Option<Azure>>;

/// What the other sources say, and what they were asked for: nothing before they have answered.
type Outside = Option<(Wanted, Option<Azure>)>;

/// What is known at one moment.
pub(super) struct Known {
    /// Nothing without sources.
    pub(super) azure: Option<Azure>,
    /// Whether every source has answered.
    pub(super) is_complete: bool,
    /// What the answer is to; nothing if it is one to everything.
    asked: Option<Wanted>,
}

impl Known {
    /// Whether the sources were asked for what a service account names.
    pub(super) fn was_asked_for(&self, account: &ServiceAccount) -> bool {
        let (Some(client_id), Some(asked)) = (account.client_id(), &self.asked) else { return true };
        asked.get(&client_id.to_ascii_lowercase()).is_some_and(|by| by.contains(&account.name))
    }
}

/// Follows all sources, until it is dropped.
pub(super) struct Credentials {
    wanted: watch::Sender<Option<Wanted>>,
    outside: watch::Receiver<Outside>,
    inside: watch::Receiver<Inside>,
    _tasks: JoinSet<()>,
}

impl Credentials {
    /// Begins to follow those that the configuration names, and the custom resources of the cluster.
    pub(super) fn follow(client: &Client, identity: &Identity) -> Self {
        let (wanted, asked) = watch::channel(None);
        let (tell_outside, outside) = watch::channel(None);
        let (tell_inside, inside) = watch::channel(None);
        let sources = Arc::new(configured(identity));
        let mut tasks = JoinSet::new();
        let asked_inside = asked.clone();
        tasks.spawn(again_after_panic(async move || {
            follow_sources(&sources, asked.clone(), &tell_outside).await;
        }));
        let client = client.clone();
        tasks.spawn(again_after_panic(async move || {
            follow_custom_resources(&client, &asked_inside, &tell_inside).await;
        }));
        Self { wanted, outside, inside, _tasks: tasks }
    }

    /// What stands in the annotations of service accounts: what has to be known.
    pub(super) fn want(&self, wanted: Wanted) {
        publish(&self.wanted, wanted);
    }

    /// What is known now.
    pub(super) fn known(&self) -> Known {
        let (outside, inside) = (self.outside.borrow().clone(), self.inside.borrow().clone());
        let is_complete = outside.is_some() && inside.is_some();
        let (asked, outside) = match outside {
            None => (Some(Wanted::new()), None),
            Some((_, None)) => (None, None),
            Some((asked, azure)) => (Some(asked), azure),
        };
        let answers: Vec<_> = [outside, inside.flatten()].into_iter().flatten().collect();
        Known { azure: (!answers.is_empty()).then(|| merged(answers)), is_complete, asked }
    }

    /// Whether every source has answered.
    pub(super) fn is_complete(&self) -> bool {
        self.outside.borrow().is_some() && self.inside.borrow().is_some()
    }

    /// Waits for another answer. Cancel safe.
    pub(super) async fn changed(&mut self) {
        // Both senders live as long as this.
        tokio::select! {
            _ = self.outside.changed() => {}
            _ = self.inside.changed() => {}
        }
    }
}

fn publish<T: PartialEq>(tell: &watch::Sender<Option<T>>, answer: T) {
    let answer = Some(answer);
    tell.send_if_modified(|old| {
        let is_new = *old != answer;
        *old = answer;
        is_new
    });
}

async fn follow_sources(sources: &Sources, mut wanted: watch::Receiver<Option<Wanted>>, tell: &watch::Sender<Outside>) {
    loop {
        // Before it is known what is wanted, an answer would be one to nothing.
        let Ok(wanted_now) = wanted.wait_for(Option::is_some).await.map(|now| now.clone().unwrap_or_default()) else {
            return;
        };
        let azure = sources.read(&wanted_now).await;
        publish(tell, (wanted_now, azure));
        time::sleep(PAUSE).await;
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = time::sleep(PERIOD) => {}
        }
    }
}

async fn follow_custom_resources(
    client: &Client,
    wanted: &watch::Receiver<Option<Wanted>>,
    tell: &watch::Sender<Inside>,
) {
    loop {
        let found = match CustomResources::find(client).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %Causes(&error), "cannot see which custom resources there are, trying again");
                time::sleep(PERIOD).await;
                continue;
            }
        };
        let Some(resources) = found else {
            publish(tell, None);
            time::sleep(DISCOVERY).await;
            continue;
        };
        let mut changes = watch_changes("custom resources", resources.watch()).chain(stream::pending());
        let until = time::Instant::now() + DISCOVERY;
        while time::Instant::now() < until {
            let wanted_now = wanted.borrow().clone().unwrap_or_default();
            let began = time::Instant::now();
            publish(tell, Some(resources.read(&wanted_now).await));
            let rested = time::Instant::now() + REST.max(began.elapsed() * REST_FACTOR);
            // What comes meanwhile is one change.
            let mut due = until;
            loop {
                tokio::select! {
                    () = time::sleep_until(due) => break,
                    _ = changes.next() => due = due.min(rested.max(time::Instant::now() + PAUSE)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::{FutureExt, future::BoxFuture};

    use super::*;

    /// Remembers what it was asked for.
    struct Remembering(Arc<Mutex<Vec<Wanted>>>);

    impl Source for Remembering {
        fn name(&self) -> &'static str {
            "remembering"
        }

        fn read<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Azure> {
            self.0.lock().unwrap().push(wanted.clone());
            async { Azure::default() }.boxed()
        }
    }

    fn account(client_id: &str) -> ServiceAccount {
        let mut account = ServiceAccount::default();
        account.name.name = format!("of-{client_id}").to_lowercase();
        account.annotations.insert("azure.workload.identity/client-id".to_owned(), client_id.to_owned());
        account
    }

    fn wanted(client_id: &str) -> Wanted {
        crate::credentials::wanted([&account(client_id)].into_iter())
    }

    /// Credentials of these sources and without custom resources.
    fn of(sources: Sources) -> Credentials {
        let (wanted, asked) = watch::channel(None);
        let (tell_outside, outside) = watch::channel(None);
        let (_, inside) = watch::channel(Some(None));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { follow_sources(&sources, asked, &tell_outside).await });
        Credentials { wanted, outside, inside, _tasks: tasks }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_one_to_what_was_asked_and_to_nothing_else() {
        let asked = Arc::default();
        let mut credentials = of(Sources::new(vec![Box::new(Remembering(Arc::clone(&asked)))]));
        time::sleep(PERIOD * 2).await;
        assert!(!credentials.is_complete() && asked.lock().unwrap().is_empty(), "nobody knows what is wanted");
        let known = credentials.known();
        assert!(known.azure.is_none() && !known.was_asked_for(&account("one")));

        credentials.want(wanted("one"));
        credentials.outside.changed().await.unwrap();
        let known = credentials.known();
        assert!(known.is_complete && known.azure.is_some());
        assert!(known.was_asked_for(&account("ONE")) && !known.was_asked_for(&account("two")));
        credentials.want(wanted("two"));
        assert!(!credentials.known().was_asked_for(&account("two")), "not yet");
        credentials.outside.changed().await.unwrap();
        assert!(credentials.known().was_asked_for(&account("two")));
        assert_eq!(*asked.lock().unwrap(), [wanted("one"), wanted("two")]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_sources_there_is_nothing_to_wait_for() {
        let mut credentials = of(Sources::default());
        credentials.want(wanted("one"));
        credentials.outside.changed().await.unwrap();
        let known = credentials.known();
        assert!(known.is_complete && known.azure.is_none() && known.was_asked_for(&account("anything")));
    }
}
